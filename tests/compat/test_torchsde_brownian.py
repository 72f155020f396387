"""torchsde's Brownian interface: arguments, shapes, laws, and the samplers that stand on it."""

import math
import warnings

import numpy as np
import pytest
import torch

from dxdt.compat.torchsde import BrownianInterval, BrownianTree

ALL = ["none", "space-time", "davie", "foster"]


@pytest.mark.parametrize("approximation", ALL)
@pytest.mark.parametrize("size", [(), (5,), (5, 3), (2, 5, 3)])
def test_shapes(size, approximation):
    bm = BrownianInterval(size=size, levy_area_approximation=approximation, entropy=1)
    W, U, A = bm(0.2, 0.7, return_U=True, return_A=True)
    assert W.shape == bm.shape == bm.size() == size and W.dtype == bm.dtype == torch.float32
    assert torch.equal(bm(0.2, 0.7), W)
    assert torch.equal(bm(0.2, 0.7, return_U=True)[0], W)
    if approximation == "none":
        assert U is None and A is None
        return
    assert U.shape == size
    if approximation == "space-time":
        assert A is None
    else:
        assert A.shape == (*size, *size[-1:])
        assert len(size) < 2 or torch.equal(A, -A.mT)
        assert torch.equal(bm(0.2, 0.7, return_A=True)[1], A)
    still = bm(0.5, 0.5, return_U=True)
    assert all((x == 0).all() for x in still)


def test_arguments_of_torchsde_are_accepted():
    bm = BrownianInterval(0.0, 2.0, (4, 2), torch.float64, "cpu", 3, 0.1, 0.0, 8, None, False, "space-time")
    assert bm.dt == 0.1 and bm.cache_size is None and bm.entropy == 3 and "t1=2.000" in repr(bm)
    tree = BrownianTree(torch.tensor(0.0), torch.zeros(4, 2), entropy=3, tol=1e-5, pool_size=8, cache_depth=9)
    assert tree(0.3).shape == (4, 2)
    BrownianInterval(size=(1,), halfway_tree=True, tol=1e-4, entropy=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "specify size"),
        ({"size": (2,), "t0": 1.0, "t1": 0.0}, "less than terminal"),
        ({"size": (2,), "tol": -1.0}, "non-negative"),
        ({"size": (2,), "halfway_tree": True}, "positive"),
        ({"size": (2,), "halfway_tree": True, "tol": 1e-3, "dt": 0.1}, "leave it out"),
        ({"size": (2,), "levy_area_approximation": "magic"}, "must be one of"),
        ({"size": (2,), "W": torch.zeros(3)}, "Multiple sizes"),
        ({"dtype": torch.float64, "W": torch.zeros(3)}, "Multiple dtypes"),
        ({"W": torch.zeros(3, dtype=torch.int64)}, "floating point"),
        ({"size": (2,), "t0": torch.zeros(2)}, "0-d"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        BrownianInterval(**options)


def test_bad_queries():
    bm = BrownianInterval(size=(2,), entropy=0)
    with pytest.raises(RuntimeError, match="must respect ta <= tb"):
        bm(0.5, 0.4)
    with pytest.warns(UserWarning, match="outside"):
        assert torch.equal(bm(0.0, 1.1), bm(0.0, 1.0))


@pytest.mark.parametrize("make", [BrownianInterval, BrownianTree])
def test_one_ulp_outside_is_served_silently(make):
    """ComfyUI#6474, diffusers#13274: float32 sigmas that overshoot by rounding."""
    end = np.float32(14.614643)
    common = {"t1": float(end), "entropy": 0}
    bm = make(size=(2,), **common) if make is BrownianInterval else make(0.0, torch.zeros(2), **common)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        over = bm(1.0, float(np.nextafter(end, np.float32(20))))
    assert torch.equal(over, bm(1.0, float(end)))


def moments(x, variance):
    assert abs(x.mean()) < 4 * math.sqrt(variance / x.numel())
    assert abs(x.square().mean() / variance - 1) < 4 * math.sqrt(2 / x.numel())


@pytest.mark.parametrize("approximation", ["davie", "foster"])
def test_laws(approximation):
    bm = BrownianInterval(0.0, 2.0, (40_000, 2), torch.float64, entropy=5, levy_area_approximation=approximation)
    a, b = 0.3, 1.2
    h = b - a
    W, U, A = bm(a, b, return_U=True, return_A=True)
    moments(W, h)
    moments(U, h**3 / 3)
    moments(U - h / 2 * W, h**3 / 12)
    area = A[:, 0, 1]
    assert abs(area.square().mean() / (h**2 / 4) - 1) < 4 * math.sqrt(4 / 40_000)
    left, right = bm(a, 0.8, return_U=True), bm(0.8, b, return_U=True)
    assert torch.allclose(left[0] + right[0], W, atol=1e-13)
    assert torch.allclose(left[1] + right[1] + left[0] * (b - 0.8), U, atol=1e-13)


def test_bridges():
    w = torch.randn(4, 3)
    bm = BrownianInterval(W=w, H=0 * w, levy_area_approximation="space-time", entropy=0)
    W, U = bm(0.0, 1.0, return_U=True)
    assert torch.allclose(W, w) and torch.allclose(U, w / 2, atol=1e-6)
    tree = BrownianTree(0.0, torch.ones(4, 3), w1=w, entropy=0)
    assert torch.allclose(tree(1.0), w, atol=1e-6) and torch.equal(tree(0.0), torch.ones(4, 3))
    assert torch.allclose(tree(0.25) + tree(0.25, 1.0), w, atol=1e-6)


def test_entropy_names_the_path():
    queries = [(0.1, 0.4), (0.4, 0.41), (0.0, 1.0)]
    one = [BrownianInterval(size=(3, 2), entropy=7)(*q) for q in queries]
    bm = BrownianInterval(size=(3, 2), entropy=7)
    assert all(torch.equal(a, bm(*q)) for a, q in reversed(list(zip(one, queries, strict=True))))
    assert not torch.equal(one[0], BrownianInterval(size=(3, 2), entropy=8)(*queries[0]))
    np.random.seed(0)
    first = BrownianInterval(size=(2,))(0.0, 1.0)
    np.random.seed(0)
    assert torch.equal(first, BrownianInterval(size=(2,))(0.0, 1.0))
    BrownianTree(0.0, torch.zeros(2), entropy=2**63 - 1)(0.5)


def test_sizes_that_hang_or_crash_torchsde():
    """torchsde#109: 100 steps of 0.01 in float32; torchsde#105: 20,000 steps of 1e-3."""
    for end, dt in ((1.0, 0.01), (20.0, 1e-3)):
        ts = torch.arange(0, round(end / dt) + 1, dtype=torch.float32) * dt
        bm = BrownianInterval(0.0, ts[-1], (2, 2), dt=dt, entropy=0)
        asked = ts[:: max(1, len(ts) // 100)]
        total = sum(bm(a, b) for a, b in zip(asked, asked[1:], strict=False))
        assert torch.allclose(total, bm(asked[0], asked[-1]), atol=1e-5)


class NoiseSampler:
    """The use that k-diffusion and diffusers make of BrownianTree: unit noise between sigmas.

    One tree for the batch, or one for each sample when seeds come as a list.
    """

    def __init__(self, x, sigma_min, sigma_max, seeds):
        low, high = torch.as_tensor(sigma_min), torch.as_tensor(sigma_max)
        self.listed = isinstance(seeds, list)
        w0 = torch.zeros_like(x[0] if self.listed else x)
        seeds = seeds if self.listed else [seeds]
        self.trees = [BrownianTree(low, w0, high, entropy=seed) for seed in seeds]

    def __call__(self, sigma, sigma_next):
        a, b = torch.as_tensor(sigma), torch.as_tensor(sigma_next)
        sign = 1 if a < b else -1
        low, high = (a, b) if a < b else (b, a)
        noise = torch.stack([tree(low, high) for tree in self.trees])
        return sign * (noise if self.listed else noise[0]) / (b - a).abs().sqrt()


def test_noise_samplers_are_reproducible_per_seed_and_row():
    x = torch.zeros(3, 4, 16, 16)
    sigmas = torch.linspace(14.6, 0.03, 6)
    steps = list(zip(sigmas, sigmas[1:], strict=False))
    run = [NoiseSampler(x, 0.03, 14.6, [1, 2, 3])(*s) for s in steps]
    again = NoiseSampler(x, 0.03, 14.6, [1, 2, 3])
    assert all(torch.equal(a, again(*s)) for a, s in zip(run, steps, strict=True))
    alone = NoiseSampler(x[:1], 0.03, 14.6, [2])
    assert all(torch.equal(a[1:2], alone(*s)) for a, s in zip(run, steps, strict=True))
    for noise in run:
        moments(noise, 1.0)
    joint = NoiseSampler(x, 0.03, 14.6, 9)
    fewer = NoiseSampler(x[:2], 0.03, 14.6, 9)
    assert torch.equal(joint(*steps[0])[:2], fewer(*steps[0]))
    fine = sum(joint(a, b) * (a - b).sqrt() for a, b in zip(sigmas, sigmas[1:], strict=False))
    assert torch.allclose(fine, joint(sigmas[0], sigmas[-1]) * (sigmas[0] - sigmas[-1]).sqrt(), atol=1e-4)
