"""Likelihoods within a ten-thousandth of a nat of the truth, for every process; calls counted."""

import math

import pytest
import torch
from torch import Tensor

import dxdt
from dxdt import diffusion
from dxdt.diffusion import (
    EDM,
    VE,
    VP,
    BrownianBridge,
    Denoiser,
    Levels,
    Marginal,
    MixtureOracle,
    Prior,
    Process,
    RectifiedFlow,
    SubVP,
    Table,
    bits_per_dim,
    decode,
    encode,
    gaussian_oracle,
    linear_betas,
    log_likelihood,
)
from dxdt.ops.autodiff import Exact, Hutchinson
from impulses import MU, M, S
from processes import PROCESSES, ends

DOUBLE = torch.float64


def mixture(process: Process) -> MixtureOracle:
    return MixtureOracle(
        process,
        torch.tensor([0.4, 0.6]).double(),
        torch.tensor([[-0.8, -0.8, 0.3], [0.8, 0.6, -0.5]]).double(),
        torch.tensor([[0.3, 0.4, 0.5], [0.5, 0.3, 0.6]]).double(),
    )


def draws(oracle: MixtureOracle, n: int) -> Tensor:
    k = torch.randint(len(oracle.weights), (n,))
    return oracle.means[k] + oracle.stds[k] * torch.randn(n, *oracle.means.shape[1:], dtype=DOUBLE)


CASES = [(p, "mixture") for p in PROCESSES] + [(p, "normal") for p in PROCESSES[:6]]


@pytest.mark.parametrize(("process", "law"), CASES, ids=repr)
def test_likelihoods_are_within_a_ten_thousandth_of_a_nat(process: Process, law: str):
    """Of the density at t0, under the exact law at t1: no mismatch of the prior is in the way."""
    oracle = gaussian_oracle(process, M, S) if law == "normal" else mixture(process)
    t0, t1 = ends(process)
    mu = MU.expand(5, 3) if process.centred else None
    start = torch.tensor(t0, dtype=DOUBLE)
    x = process.perturb(draws(oracle, 5), start, torch.randn(5, 3, dtype=DOUBLE), mu)
    options = {"t0": t0, "t1": t1, "prior": Marginal(oracle, t1, mu), "mu": mu, "rtol": 1e-6, "atol": 1e-6}
    found = log_likelihood(oracle, x, **options)
    assert (found.log_prob - oracle.log_prob(x, start, mu)).abs().max() < 1e-4
    assert found.standard_error.eq(0).all()


def test_a_clock_of_its_own_spares_tables_their_jumps():
    process = VP(Table.from_betas(linear_betas(200)))
    oracle = mixture(process)
    x = draws(oracle, 3)
    options = {"t0": 0.01, "prior": Marginal(oracle, 1.0), "rtol": 1e-5, "atol": 1e-5}
    found = log_likelihood(oracle, x, log_snr=True, **options)
    plain = log_likelihood(oracle, x, log_snr=False, **options)
    truth = oracle.log_prob(x, torch.tensor(0.01).double())
    assert (found.log_prob - truth).abs().max() < 1e-3
    assert 2 * found.evaluations < plain.evaluations
    same = encode(oracle, x, t0=0.01, log_snr=True, rtol=1e-7, atol=1e-7)
    assert torch.allclose(decode(oracle, same, t0=0.01, log_snr=True, rtol=1e-7, atol=1e-7), x, atol=1e-3)
    assert torch.allclose(same, found.latent, atol=1e-3)


@pytest.mark.parametrize("process", [VP(), SubVP(), RectifiedFlow()], ids=repr)
def test_the_prior_of_the_process_is_near_enough_for_normal_data_of_its_width(process: Process):
    s = torch.ones(3).double() if process != RectifiedFlow() else S
    oracle = gaussian_oracle(process, torch.zeros(3).double(), s)
    x = draws(oracle, 5)
    found = log_likelihood(oracle, x, t0=1e-5, rtol=1e-7, atol=1e-7)
    truth = torch.distributions.Normal(0.0, s).log_prob(x).sum(1)
    assert (found.log_prob - truth).abs().max() < 2e-4


@pytest.mark.parametrize("process", [VP(), VE(), SubVP(), EDM()], ids=repr)
def test_every_sample_may_take_steps_of_its_own(process: Process):
    oracle = mixture(process)
    t0, t1 = ends(process)
    x = draws(oracle, 4)
    options = {"t0": t0, "t1": t1, "prior": Marginal(oracle, t1), "rtol": 1e-7, "atol": 1e-7, "per_sample": True}
    found = log_likelihood(oracle, x, **options)
    assert (found.log_prob - oracle.log_prob(x, torch.tensor(t0).double())).abs().max() < 1e-4
    alone = log_likelihood(oracle, x[:1], **options)
    assert torch.allclose(alone.log_prob, found.log_prob[:1], rtol=1e-12, atol=1e-12)


def test_probes_estimate_with_an_honest_error():
    oracle = mixture(VP())
    x = draws(oracle, 64)
    options = {"t0": 1e-3, "rtol": 1e-4, "atol": 1e-4, "prior": Marginal(oracle, 1.0)}
    exact = log_likelihood(oracle, x, **options)
    found = log_likelihood(oracle, x, divergence=Hutchinson(40, seed=2), **options)
    ratio = (found.log_prob - exact.log_prob) / found.standard_error
    assert 0.6 < ratio.square().mean().sqrt() < 1.6  # standardised errors are of size one
    few = log_likelihood(oracle, x[:5], divergence=Hutchinson(40, seed=2), **options)
    assert torch.allclose(few.log_prob, found.log_prob[:5], atol=2e-3)  # the same probes


class Counting(torch.autograd.Function):
    """The identity, which counts how often it is passed in each direction."""

    forwards, backwards = 0, 0

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        Counting.forwards += 1
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        Counting.backwards += 1
        return g

    @staticmethod
    def vmap(info, in_dims, x: Tensor):
        return Counting.apply(x), in_dims[0]


def count(kind) -> tuple[int, int, int]:
    def net(x: Tensor, clock: Tensor) -> Tensor:
        calls.append(1)
        return 0.5 * torch.tanh(x)

    calls: list[int] = []
    denoiser = Denoiser(net, VP())
    x = torch.randn(3, 4, dtype=DOUBLE)
    found = log_likelihood(denoiser, x, divergence=kind, t0=0.1, rtol=1e-3, atol=1e-3)
    return len(calls), found.evaluations, found.log_prob.numel()


@pytest.mark.parametrize("kind", [Exact(), Hutchinson(1), Hutchinson(5)], ids=str)
def test_the_network_runs_once_a_stage(kind):
    # score_sde runs it twice, for the drift and again for its divergence.
    calls, evaluations, _ = count(kind)
    assert calls == evaluations


def test_one_pass_forward_and_one_back_a_stage():
    Counting.forwards = Counting.backwards = 0

    def net(x: Tensor, clock: Tensor) -> Tensor:
        return 0.5 * torch.tanh(Counting.apply(x))

    found = log_likelihood(
        Denoiser(net, VP()),
        torch.randn(3, 4, dtype=DOUBLE),
        divergence=Hutchinson(1),
        t0=0.1,
        rtol=1e-3,
        atol=1e-3,
    )
    assert Counting.forwards == Counting.backwards == found.evaluations


@pytest.mark.parametrize("shape", [(2, 1), (2, 1, 3, 2), (3, 2, 2)])
def test_data_of_any_shape(shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(1)
    m, s = (
        torch.randn(shape[1:], generator=generator).double(),
        0.5 + torch.rand(shape[1:], generator=generator).double(),
    )
    oracle = gaussian_oracle(VP(), m, s)
    x = m + s * torch.randn(shape, dtype=DOUBLE)
    found = log_likelihood(oracle, x, t0=0.01, prior=Marginal(oracle, 1.0), rtol=1e-7, atol=1e-7)
    assert (found.log_prob - oracle.log_prob(x, torch.tensor(0.01).double())).abs().max() < 1e-4
    assert found.latent.shape == shape


@pytest.mark.parametrize("count", [2, 32, 256, 65536])
def test_bits_of_any_depth(count: int):
    # Uniform levels under a normal model of known density, at any number of levels.
    levels = Levels(count, -1.0, 1.0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(count, (400, 2), generator=generator)
    s = torch.tensor([0.6, 0.6]).double()
    oracle = gaussian_oracle(VP(), torch.zeros(2).double(), s)
    options = {"dtype": DOUBLE, "t0": 1e-4, "rtol": 1e-4, "atol": 1e-4, "prior": Marginal(oracle, 1.0)}
    found = bits_per_dim(oracle, images, levels=levels, batch=400, **options)
    nats = 0.5 * math.log(2 * math.pi * 0.36) + (1 / 3) / (2 * 0.36) - math.log(levels.width)
    assert found.mean == pytest.approx(nats / math.log(2), abs=4 * found.standard_error + 2e-3)


def test_gradients_of_a_likelihood():
    oracle = gaussian_oracle(VP(), M, S)
    x = torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    found = log_likelihood(oracle, x, t0=0.05, prior=Marginal(oracle, 1.0), rtol=1e-8, atol=1e-8).log_prob
    (score,) = torch.autograd.grad(found.sum(), x)
    assert torch.allclose(score, oracle(x, torch.tensor(0.05).double()).score, atol=1e-4)


@pytest.mark.gpu
def test_likelihoods_stay_on_the_device():
    m, s = M.cuda(), S.cuda()
    oracle = gaussian_oracle(VP(), m, s)
    x = m + s * torch.randn(4, 3, dtype=DOUBLE, device="cuda")
    found = log_likelihood(oracle, x, t0=0.01, prior=Marginal(oracle, 1.0), rtol=1e-7, atol=1e-7)
    assert found.log_prob.device.type == "cuda"
    truth = oracle.log_prob(x, torch.tensor(0.01, dtype=DOUBLE, device="cuda"))
    assert (found.log_prob - truth).abs().max() < 1e-4


ORACLE = gaussian_oracle(VP(), M, S)
X = torch.zeros(2, 3).double()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: log_likelihood(gaussian_oracle(BrownianBridge(0.5), M, S), X, mu=X), "ends in one point"),
        (lambda: log_likelihood(ORACLE, X, t0=0.5, t1=0.4), "no span of VP"),
        (lambda: log_likelihood(ORACLE, X, t1=2.0), "no span of VP"),
        (lambda: log_likelihood(gaussian_oracle(RectifiedFlow(), M, S), X, log_snr=True), "leave log_snr out"),
        (lambda: log_likelihood(ORACLE, X[0]), "no batch axis"),
        (lambda: log_likelihood(ORACLE, X / 0), "not finite"),
        (lambda: log_likelihood(ORACLE, X, solver=dxdt.EulerMaruyama(), dt=0.1), "stochastic|adapts"),
        (lambda: Hutchinson(0), "probes=0"),
        (lambda: Prior(0.0, 0.0).log_prob(X), "a point"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("entries", "exact"), [(1, True), (4, True), (5, False), (12, False)])
def test_the_default_divergence_is_what_people_can_afford(entries, exact):
    """Never more passes than there are entries; otherwise an estimate with a standard error around the exact trace."""
    net = torch.nn.Linear(entries, entries, dtype=torch.float64)
    denoiser = diffusion.Denoiser(lambda x, t: net(x).sin(), diffusion.VP())
    x = torch.randn(6, entries, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = diffusion.log_likelihood(denoiser, x, t0=1e-3)
        right = diffusion.log_likelihood(denoiser, x, t0=1e-3, divergence=diffusion.Exact())
        same = diffusion.log_likelihood(denoiser, x, t0=1e-3, divergence=diffusion.Hutchinson(4))
    if exact:
        assert torch.equal(found.log_prob, right.log_prob) and not found.standard_error.any()
        return
    assert torch.equal(found.log_prob, same.log_prob) and (found.standard_error > 0).all()
    assert ((found.log_prob - right.log_prob).abs() < 6 * found.standard_error + 1e-3).all()


def test_probes_are_numbered_by_image_and_repeat():
    """A batch is no part of the answer, and repeats are independent: their deviation falls as their root."""
    torch.manual_seed(0)
    net = torch.nn.Linear(16, 16)
    denoiser = Denoiser(lambda x, t: net(x).tanh(), VP())
    images = torch.randint(0, 256, (6, 16), generator=torch.Generator().manual_seed(1))
    options = dict(divergence=dxdt.diffusion.Hutchinson(1), rtol=1e-3, atol=1e-3, controller=dxdt.PID(1e-3, 1e-3))
    whole, parts = (bits_per_dim(denoiser, images, batch=n, per_sample=True, **options).each for n in (6, 2))
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)
    spread = []
    for repeats in (1, 16):
        found = [
            bits_per_dim(
                denoiser,
                images[:2],
                repeats=repeats,
                seed=s,
                **{**options, "divergence": dxdt.diffusion.Hutchinson(1, s)},
            ).mean
            for s in range(8)
        ]
        spread.append(torch.tensor(found).std())
    assert spread[1] < 0.6 * spread[0]
