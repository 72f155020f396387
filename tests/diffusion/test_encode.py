"""Data as latents: exact maps of normal laws, round trips bound by the tolerance, ways between latents."""

import math

import pytest
import torch
from torch import Tensor

import dxdt
from dxdt.diffeq import RK4, EulerMaruyama
from dxdt.diffusion import (
    DDIM,
    VP,
    BrownianBridge,
    Denoiser,
    MixtureOracle,
    Process,
    Table,
    decode,
    encode,
    gaussian_oracle,
    interpolate,
)
from dxdt.nn import UNet
from impulses import MU, M, S, exact
from processes import PROCESSES, ends

DOUBLE = torch.float64
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def mixture(process: Process) -> MixtureOracle:
    return MixtureOracle(
        process,
        torch.tensor([0.4, 0.6]).double(),
        torch.tensor([[-0.8, -0.8, 0.3], [0.8, 0.6, -0.5]]).double(),
        torch.tensor([[0.3, 0.4, 0.5], [0.5, 0.3, 0.6]]).double(),
    )


# Every third of the many processes at once, all of them with -m slow.
MOST = [p if k < 6 or k % 3 == 0 else pytest.param(p, marks=pytest.mark.slow) for k, p in enumerate(PROCESSES)]


@pytest.mark.parametrize("process", MOST, ids=repr)
def test_normal_data_have_exact_latents(process: Process):
    t0, t1 = ends(process)
    mean = process.centred
    (m0, v0), (m1, v1) = exact(process, t0, mean), exact(process, t1, mean)
    x = m0 + v0.sqrt() * torch.randn(4, 3, dtype=DOUBLE)
    kinks = isinstance(getattr(process, "schedule", None), Table)
    mu = MU.expand(4, 3) if mean else None
    options = {"t0": t0, "t1": t1, "mu": mu, "rtol": 1e-7, "atol": 1e-7, "log_snr": kinks}
    latent = encode(gaussian_oracle(process, M, S), x, **options)
    assert torch.allclose(latent, m1 + (v1 / v0).sqrt() * (x - m0), rtol=1e-5, atol=1e-5)
    again = decode(gaussian_oracle(process, M, S), latent, **options)
    assert torch.allclose(again, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("process", [VP(), *PROCESSES[2:5]], ids=repr)
@pytest.mark.parametrize("per_sample", [False, True])
def test_the_round_trip_is_bound_by_the_tolerance(process: Process, per_sample: bool):
    oracle, errors = mixture(process), []
    x = oracle.means[[0, 1, 0, 1, 1]] + oracle.stds[[0, 1, 0, 1, 1]] * torch.randn(5, 3, dtype=DOUBLE)
    for tolerance in (1e-4, 1e-6, 1e-8):
        options = {"rtol": tolerance, "atol": tolerance, "t0": 0.01, "per_sample": per_sample}
        again = decode(oracle, encode(oracle, x, **options), **options)
        errors.append((again - x).abs().max().item())
    for tolerance, error in zip((1e-4, 1e-6, 1e-8), errors, strict=True):
        assert error < 1e3 * tolerance, errors  # flows of mixtures stretch what lies between the components
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize(("solver", "order"), [(DDIM(), 1), (RK4(), 4)], ids=str)
def test_given_steps_invert_to_their_order(solver, order: int):
    oracle, x = mixture(VP()), 0.6 * torch.randn(5, 3, dtype=DOUBLE)
    errors = []
    for steps in (100, 200):
        options = {"solver": solver, "steps": steps, "t0": 0.1}
        errors.append((decode(oracle, encode(oracle, x, **options), **options) - x).abs().max().item())
    assert errors[0] / errors[1] > 0.8 * 2**order, errors


def test_images_of_any_shape_come_back_and_do_not_mix():
    torch.manual_seed(0)
    net = UNet(1, channels=4, multipliers=(1, 2), blocks=1, attention=(1,)).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    denoiser = Denoiser(net, VP()).requires_grad_(False)
    x = 0.3 * torch.randn(3, 1, 4, 4, dtype=DOUBLE)
    options = {"t0": 0.1, "rtol": 1e-7, "atol": 1e-7, "per_sample": True}
    latent = encode(denoiser, x, **options)
    assert torch.allclose(decode(denoiser, latent, **options), x, atol=3e-4)
    assert torch.allclose(encode(denoiser, x[:1], **options), latent[:1], atol=1e-8)


def test_gradients_flow_through_both_ways():
    oracle = gaussian_oracle(VP(), M, S)
    x = torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    options = {"t0": 0.05, **TIGHT}
    (found,) = torch.autograd.grad(encode(oracle, x, **options).sum(), x)
    (v0, v1) = (exact(VP(), t)[1] for t in (0.05, 1.0))
    assert torch.allclose(found, (v1 / v0).sqrt().expand(2, 3), atol=1e-5)


def test_interpolation_begins_and_ends_in_the_data_and_keeps_norms_between():
    oracle = mixture(VP())
    x, y = 0.6 * torch.randn(2, 4, 3, dtype=DOUBLE)
    options = {"t0": 0.01, "rtol": 1e-7, "atol": 1e-7}
    between = interpolate(oracle, x, y, [0.0, 0.25, 0.5, 1.0], **options)
    assert between.shape == (4, 4, 3)
    assert torch.allclose(between[0], x, atol=1e-4) and torch.allclose(between[3], y, atol=1e-4)
    u, v, w = (encode(oracle, z, **options) for z in (x, y, between[2]))
    angles = [(a * b).sum(1).div(a.norm(dim=1) * b.norm(dim=1)).acos() for a, b in ((u, v), (u, w), (w, v))]
    assert torch.allclose(angles[0], angles[1] + angles[2], atol=1e-3)  # on the circle through both
    assert torch.allclose(interpolate(oracle, x, x, [0.3], **options)[0], x, atol=1e-4)
    back = interpolate(oracle, y, x, torch.tensor([0.75]), **options)[0]
    assert torch.allclose(back, between[1], atol=1e-5)


def test_interpolation_turns_about_the_mean_of_the_prior():
    process = next(p for p in PROCESSES if p.centred and p.prior_std > 0)
    oracle = gaussian_oracle(process, M, S)
    t0 = ends(process)[0]
    x, y = M + S * torch.randn(2, 2, 3, dtype=DOUBLE)
    mu = MU.expand(2, 3)
    options = {"t0": t0, "rtol": 1e-8, "atol": 1e-8}
    middle = interpolate(oracle, x, y, [0.5], mu=mu, **options)[0]
    u, v, w = (encode(oracle, z, mu=mu, **options) - mu for z in (x, y, middle))
    cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))
    want = (u + v) * (0.5 / (0.5 * cosine.acos()).cos())[:, None]
    assert torch.allclose(w, want, atol=1e-4)


def test_temperature_scales_latents_about_the_mean():
    oracle = gaussian_oracle(VP(), M, S)
    latent = torch.randn(4, 3, dtype=DOUBLE)
    options = {"t0": 0.01, **TIGHT}
    cool, plain = (decode(oracle, latent, temperature=t, **options) for t in (0.5, 1.0))
    (m0, v0), (m1, v1) = exact(VP(), 0.01), exact(VP(), 1.0)
    assert torch.allclose(plain, m0 + (v0 / v1).sqrt() * (latent - m1), atol=1e-5)
    assert torch.allclose(cool, m0 + (v0 / v1).sqrt() * (0.5 * latent - m1), atol=1e-5)
    process = next(p for p in PROCESSES if p.centred and p.prior_std > 0)
    t0, mu = ends(process)[0], MU.expand(4, 3)
    z = mu + process.prior_std * latent
    cold = decode(gaussian_oracle(process, M, S), z, temperature=1e-9, t0=t0, mu=mu, rtol=1e-8, atol=1e-8)
    centre = decode(gaussian_oracle(process, M, S), mu.clone(), t0=t0, mu=mu, rtol=1e-8, atol=1e-8)
    assert torch.allclose(cold, centre, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 1), (1, 2, 3, 2)])
def test_shapes_and_dtypes_are_kept(shape: tuple[int, ...], dtype: torch.dtype):
    oracle = gaussian_oracle(VP(), torch.zeros(shape[1:], dtype=dtype), torch.ones(shape[1:], dtype=dtype))
    x = torch.randn(shape, dtype=dtype)
    latent = encode(oracle, x, rtol=1e-3, atol=1e-3)
    assert latent.shape == x.shape and latent.dtype == dtype
    path = interpolate(oracle, x, -0.5 * x, [0.5], rtol=1e-3, atol=1e-3)  # opposite: through the middle
    assert path.shape == (1, *shape) and path.dtype == dtype and path.isfinite().all()


ORACLE = gaussian_oracle(VP(), M, S)
X = torch.zeros(2, 3).double()
BRIDGE = gaussian_oracle(BrownianBridge(0.5), M, S)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: encode(ORACLE, X[0]), "no batch axis"),
        (lambda: encode(ORACLE, X, t0=0.5, t1=0.4), "no span of VP"),
        (lambda: encode(ORACLE, X, t1=1.5), "no span of VP"),
        (lambda: encode(ORACLE, X, t0=-0.1), "no span of VP"),
        (lambda: encode(ORACLE, X, steps=0), "steps=0"),
        (lambda: encode(ORACLE, X / 0), "not finite"),
        (lambda: encode(BRIDGE, X, mu=X), "ends in one point"),
        (lambda: encode(ORACLE, X, steps=5, solver=EulerMaruyama()), "stochastic"),
        (lambda: decode(ORACLE, X, temperature=0.0), "temperature=0.0"),
        (lambda: decode(ORACLE, X, temperature=math.nan), "temperature=nan"),
        (lambda: interpolate(ORACLE, X, X[:1], [0.5]), "no pairs"),
        (lambda: interpolate(ORACLE, X, X, [1.5]), "from 0 to 1"),
        (lambda: interpolate(ORACLE, X, X, []), "from 0 to 1"),
        (lambda: interpolate(ORACLE, X, X, [math.nan]), "from 0 to 1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_tensors_are_not_changed():
    x = torch.randn(2, 3, dtype=DOUBLE)
    before: Tensor = x.clone()
    decode(ORACLE, encode(ORACLE, x), temperature=0.7)
    assert torch.equal(x, before)


@pytest.mark.parametrize("solver", [dxdt.Exponential(1), dxdt.Exponential(2), dxdt.diffusion.DDIM()], ids=repr)
def test_exponential_integrators_follow_tabulated_schedules(solver):
    """All discrete checkpoints: encode and decode undo each other, and agree with the adaptive solve."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    process = dxdt.diffusion.VP(dxdt.diffusion.Table.from_betas(betas))
    oracle = dxdt.diffusion.gaussian_oracle(process, *torch.tensor([[0.3], [0.6]], dtype=torch.float64).expand(2, 4))
    x = 0.3 + 0.6 * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    latent = dxdt.diffusion.encode(oracle, x, steps=400, solver=solver)
    exact = dxdt.diffusion.encode(oracle, x, rtol=1e-7, atol=1e-7)
    assert (latent - exact).abs().max() < 0.1
    back = dxdt.diffusion.decode(oracle, latent, steps=400, solver=solver)
    assert (back - x).abs().max() < 0.05
