"""Brownian drivers: exact laws, one path however it is asked, the same bits however it is run."""

import math

import numpy as np
import pytest
import torch

from dxdt.ops import random
from dxdt.ops.random.native import generator
from dxdt.paths import (
    Brownian,
    Correlated,
    Davie,
    Foster,
    Increments,
    SpaceTime,
    brownian,
    levy_area,
)

SAMPLES = 40_000


def bind(driver, rows, size=1, t0=0.0, t1=2.0, **options):
    return driver.bind(t0, t1, rows, size, torch.float64, **options)


def ask(bound, s, t, rows=SAMPLES, step=0):
    return bound.increment(np.full(rows, s), np.full(rows, t - s), step)


def check_covariance(variables, covariance):
    """Second moments of zero-mean Gaussians within 4 standard errors, means as well."""
    v = torch.stack([x.flatten() for x in variables])
    covariance = torch.as_tensor(covariance, dtype=v.dtype)
    n = v.shape[1]
    variance = covariance.diagonal()
    assert (v.mean(1).abs() <= 4 * (variance / n).sqrt()).all()
    error = (variance[:, None] * variance + covariance**2).div(n).sqrt()
    assert ((v @ v.T / n - covariance).abs() <= 4 * error + 1e-15).all()


def laws(seed, rows):
    """W and H over neighbouring intervals are independent, with variances h and h/12."""
    bound = bind(Brownian(seed, SpaceTime), rows)
    for s, t, u in ((0.0, 0.6, 2.0), (0.31, 0.77, 1.9), (0.999, 1.0, 1.001), (1.25, 1.5, 1.5625)):
        first, second = ask(bound, s, t, rows), ask(bound, t, u, rows)
        variances = [t - s, (t - s) / 12, u - t, (u - t) / 12]
        check_covariance((first.W, first.H, second.W, second.H), np.diag(variances))


def test_laws_of_the_tree():
    laws(3, SAMPLES)
    bound = bind(Brownian(4), SAMPLES)
    times = (0.0, 1e-5, 0.3, 0.77, 0.78, 1.5, 2.0)
    pieces = [ask(bound, s, t).W for s, t in zip(times, times[1:], strict=False)]
    check_covariance(pieces, np.diag(np.diff(times)))


@pytest.mark.slow
def test_laws_of_two_million_samples():
    for seed in range(10):
        laws(seed, 200_000)


@pytest.mark.parametrize("rows", [SAMPLES, pytest.param(2_000_000, marks=pytest.mark.slow)])
def test_conditional_law_at_a_split(rows):
    """Given W, H over [0, h]: the known law of (W, H) of the left part [0, l]."""
    w, h, length, left, chunk = 0.7, -0.4, 2.0, 0.6, min(rows, 100_000)
    parts = []
    for first in range(0, rows, chunk):
        bound = bind(Brownian(5, SpaceTime, w=w, h=h), chunk, row_offset=first)
        whole = ask(bound, 0.0, length, chunk)
        assert (whole.W - w).abs().max() < 1e-14 and (whole.H - h).abs().max() < 1e-14
        parts.append(ask(bound, 0.0, left, chunk)[1:])
    left_w, left_h = (torch.cat(x) for x in zip(*parts, strict=True))
    right = length - left
    v = math.sqrt(left * right / (left**3 + right**3)) / 2
    a, b, c = v * left**2 / length, v * right**2 / length, v / math.sqrt(3)
    k = 2 * (a * left + b * right) / length
    mean_w = left / length * w + 6 * left * right / length**2 * h
    mean_h = (left / length) ** 2 * h
    check_covariance(
        (left_w - mean_w, left_h - mean_h),
        [[k * k, -k * a], [-k * a, a * a + (c * right) ** 2]],
    )


def test_bridge_of_w():
    bound = bind(Brownian(6, w=torch.tensor([1.0, -2.0])), SAMPLES, size=2)
    assert torch.allclose(ask(bound, 0.0, 2.0).W, torch.tensor([1.0, -2.0]).double(), atol=1e-14)
    part = ask(bound, 0.0, 0.5).W - torch.tensor([0.25, -0.5])
    check_covariance(part.unbind(-1), np.diag([0.375, 0.375]))


@pytest.mark.parametrize("levy", [None, SpaceTime])
def test_increments_add_up(levy):
    bound = bind(Brownian(7, levy), 100, size=3)
    for s, t, u in ((0.0, 0.3, 2.0), (0.5, 0.51, 0.53), (1.9, 1.0, 0.2)):
        left, right, whole = ask(bound, s, t, 100), ask(bound, t, u, 100), ask(bound, s, u, 100)
        assert torch.allclose(left.W + right.W, whole.W, rtol=0, atol=1e-14)
        if levy:
            a, b = t - s, u - t
            h = (b * (right.H + left.W / 2) + a * (left.H - right.W / 2)) / (a + b)
            assert torch.allclose(h, whole.H, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levy", [None, SpaceTime])
@pytest.mark.parametrize("driver", [Brownian, Increments])
def test_backward_is_forward_reversed(driver, levy):
    bound = bind(driver(8, levy), 5, size=2)
    forth, back = ask(bound, 0.5, 0.75, 5), ask(bound, 0.75, 0.5, 5)
    assert torch.equal(forth.W, -back.W)
    assert levy is None or torch.equal(forth.H, back.H)
    still = ask(bound, 0.5, 0.5, 5)
    assert (still.W == 0).all() and (levy is None or (still.H == 0).all())


@pytest.mark.parametrize("levy", [None, SpaceTime])
def test_any_order_and_any_steps_see_one_path(levy):
    times = np.linspace(0, 2, 33)
    queries = [(s, t) for s, t in zip(times, times[1:], strict=False)]
    driver = Brownian(9, levy)

    def walk(order):
        bound = bind(driver, 4, size=2)
        return {i: ask(bound, *queries[i], 4) for i in order}

    forth = walk(range(32))
    shuffled = walk(np.random.default_rng(0).permutation(32))
    for i in range(32):
        fresh = ask(bind(driver, 4, size=2), *queries[i], 4)
        assert torch.equal(forth[i].W, shuffled[i].W) and torch.equal(forth[i].W, fresh.W)
        assert levy is None or torch.equal(forth[i].H, shuffled[i].H)
    path = torch.stack([forth[i].W for i in range(32)]).cumsum(0)
    for stride in (2, 4):
        bound = bind(driver, 4, size=2)
        coarse = [ask(bound, times[i], times[i + stride], 4).W for i in range(0, 32, stride)]
        assert torch.allclose(torch.stack(coarse).cumsum(0), path[stride - 1 :: stride], rtol=0, atol=1e-13)
    whole = bind(driver, 4, size=2).value(times[1:])
    assert torch.allclose(whole, path, rtol=0, atol=1e-13)


@pytest.mark.parametrize("levy", [None, SpaceTime])
@pytest.mark.parametrize("driver", [Brownian, Increments])
def test_bits_do_not_depend_on_the_batch(driver, levy):
    t, dt, step = np.linspace(0.1, 1.2, 37), np.linspace(0.3, 0.001, 37), 70
    whole = bind(driver(10, levy), 37, size=5).increment(t, dt, step)
    for start, rows in ((0, 1), (5, 8), (20, 17)):
        part = bind(driver(10, levy), rows, size=5, row_offset=start)
        rows = slice(start, start + rows)
        part = part.increment(t[rows], dt[rows], step)
        assert torch.equal(part.W, whole.W[rows])
        assert levy is None or torch.equal(part.H, whole.H[rows])


@pytest.mark.parametrize("driver", [Brownian, Increments])
def test_clocks_may_be_tensors(driver):
    t, dt = np.linspace(0.1, 1.2, 400), np.linspace(0.3, 0.001, 400)
    bound = bind(driver(10, SpaceTime), 400, size=3)
    host = bound.increment(t, dt, np.arange(400))
    here = bound.increment(*map(torch.from_numpy, (t, dt)), torch.arange(400))
    assert torch.equal(host.W, here.W) and torch.equal(host.H, here.H)


def test_rows_of_a_joint_solve_share_one_clock():
    bound = Brownian(1).bind(0.0, 1.0, 3, 2, torch.float64)
    one = bound.increment(np.array([0.25]), np.array([0.5]))
    assert torch.equal(one.W, bound.increment(np.full(3, 0.25), np.full(3, 0.5)).W)
    assert one.W.shape == (3, 2)


def test_value_and_spans_of_rows():
    t0, t1 = np.array([0.0, 1.0, 3.0]), np.array([1.0, 2.0, -1.0])
    bound = Brownian(11).bind(t0, t1, 3, 2, torch.float64)
    times = np.linspace(t0, t1, 9)
    values = bound.value(times)
    assert values.shape == (9, 3, 2) and (values[0] == 0).all()
    for i in range(8):
        step = bound.increment(times[i], times[i + 1] - times[i]).W
        assert torch.allclose(values[i + 1] - values[i], step, rtol=0, atol=1e-13)
    alone = Brownian(11).bind(0.0, 1.0, 1, 2, torch.float64)
    assert torch.equal(alone.value(0.5), bound.value(np.array([[0.5, 1.5, 1.0]]))[0, :1])


def test_parts_of_a_span_see_one_path():
    driver = Brownian(12, span=(0.0, 4.0))
    first, second, whole = (bind(driver, 3, t0=a, t1=b) for a, b in ((0, 1), (1, 4), (0, 4)))
    joined = first.value(1.0) + second.value(3.0)
    assert torch.allclose(joined, whole.value(3.0), rtol=0, atol=1e-14)


def test_w_of_a_grid_does_not_depend_on_h():
    plain, area = (bind(Increments(13, levy), 6, size=3) for levy in (None, SpaceTime))
    assert torch.equal(ask(plain, 0.0, 0.1, 6, 3).W, ask(area, 0.0, 0.1, 6, 3).W)


def test_laws_of_increments():
    bound = bind(Increments(14, SpaceTime), SAMPLES)
    one, two = ask(bound, 0.0, 0.1, step=0), ask(bound, 0.1, 0.4, step=1)
    check_covariance((one.W, one.H, two.W, two.H), np.diag([0.1, 0.1 / 12, 0.3, 0.3 / 12]))


def test_increments_by_row_chunk_and_number():
    steps = np.arange(140)
    bound = bind(Increments(15, SpaceTime), 3, size=2)
    walked = [ask(bound, 0.0, 0.1, 3, int(k)) for k in steps]
    for k in (139, 0, 64, 63):
        assert torch.equal(ask(bound, 0.0, 0.1, 3, k).W, walked[k].W)
    mixed = ask(bound, 0.0, 0.1, 3, np.array([7, 64, 129]))
    assert torch.equal(mixed.H, torch.stack([walked[k].H[r] for r, k in enumerate((7, 64, 129))]))


def test_correlated_noise():
    factor = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-2.0, 1.0]]).double()
    for inner in (Brownian(16, SpaceTime), Increments(16, SpaceTime)):
        driver = Correlated(inner, factor)
        assert driver.adaptive == inner.adaptive and driver.levy is SpaceTime
        noise = ask(bind(driver, SAMPLES, size=3), 0.0, 0.5)
        check_covariance(noise.W.unbind(-1), 0.5 * factor @ factor.T)
        check_covariance(noise.H.unbind(-1), 0.5 / 12 * factor @ factor.T)
    with pytest.raises(ValueError, match="3 rows but the noise has size 2"):
        bind(Correlated(Brownian(0), factor), 4, size=2)
    with pytest.raises(ValueError, match="give a matrix"):
        Correlated(Brownian(0), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("driver", [Brownian, Increments])
def test_dtype(driver, dtype):
    noise = driver(17, SpaceTime).bind(0.0, 1.0, 4, 3, dtype).increment(np.zeros(4), np.ones(4), 0)
    wide = bind(driver(17, SpaceTime), 4, size=3, t1=1.0).increment(np.zeros(4), np.ones(4), 0)
    assert noise.W.dtype == noise.H.dtype == dtype
    assert torch.allclose(noise.W.double(), wide.W, atol=1e-6)


@pytest.mark.parametrize(
    "driver",
    [Brownian(3), Increments(3), Correlated(Increments(3), torch.ones(2, 2).double())],
    ids=lambda d: type(d).__name__,
)
def test_normals_beside_the_path(driver):
    bound, few = bind(driver, SAMPLES, 2), bind(driver, 5, 2)
    path = ask(bound, 0.0, 1.0).W
    first, other, later = (bound.normals(*key, 2) for key in ((0, 0), (0, 1), (1, 0)))
    check_covariance([first, other, later], np.eye(3))
    check_covariance([path[:, 0] / path[:, 0].std(), first[:, 0]], np.eye(2))
    assert torch.equal(few.normals(1, 0, 2), later[:5])
    rows = few.normals(np.array([0, 1, 0, 1, 1]), 0, 2)
    assert torch.equal(rows, torch.stack([first[0], later[1], first[2], later[3], later[4]]))
    assert torch.equal(few.normals(torch.tensor([1, 1, 1, 1, 1]), 0, 2), later[:5])


def test_times_outside_the_span():
    bound = bind(Brownian(18), 2)
    end, late = np.full(2, 2.0), np.full(2, np.nextafter(2.0, 3.0))
    assert torch.equal(bound.increment(late, -late).W, bound.increment(end, -end).W)
    assert torch.equal(bound.value(late[0]), bound.value(2.0))
    for t, dt in ((1.5, 0.6), (-0.1, 0.5), (math.nan, 0.5)):
        with pytest.raises(ValueError, match=r"outside its span \[0.0, 2.0\].*bind it"):
            bound.increment(np.full(2, t), np.full(2, dt))
    with pytest.raises(ValueError, match="leaves the span"):
        bind(Brownian(0, span=(0.0, 1.0)), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "outside 1 .. 40"),
        ({"depth": 41}, "outside 1 .. 40"),
        ({"h": 1.0}, "levy=SpaceTime"),
        ({"span": (1.0, 1.0)}, "empty"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Brownian(0, **options)


def test_an_empty_interval_has_no_noise():
    bound = bind(Brownian(19, SpaceTime), 2, t0=1.0, t1=1.0)
    noise = bound.increment(np.full(2, 1.0), np.zeros(2))
    assert (noise.W == 0).all() and (noise.H == 0).all()


@pytest.mark.parametrize("kind", [Davie(), Foster()])
def test_levy_area_variances(kind):
    """Total variance h^2/4; given H, the residual's h^2/12 or h^2/20 + h/5 (H_i^2 + H_j^2)."""
    rows, h = 100_000, 0.7
    noise = ask(bind(Increments(20, SpaceTime), rows, size=3), 0.0, h, rows)
    dt, row = torch.full((rows,), h, dtype=torch.float64), torch.arange(rows)
    area = levy_area(noise.W, noise.H, dt, seed=20, row=row, node=0, kind=kind)
    assert torch.equal(area, -area.mT)
    pairs = torch.stack((area[:, 0, 1], area[:, 0, 2], area[:, 1, 2]))
    kurtosis = 5 if isinstance(kind, Foster) else 4.4
    error = 4 * h**2 / 4 * ((kurtosis - 1) / rows) ** 0.5
    assert (pairs.square().mean(1) - h**2 / 4).abs().max() < error
    residual = area - (noise.H[:, :, None] * noise.W[:, None] - noise.W[:, :, None] * noise.H[:, None])
    standard = residual[:, 0, 1] / kind.variance(noise.H, dt)[:, 0, 1].sqrt()
    check_covariance((standard, noise.W[:, 0], noise.H[:, 1]), np.diag([1, h, h / 12]))
    back = levy_area(-noise.W, noise.H, -dt, seed=20, row=row, node=0, kind=kind)
    assert torch.allclose(back, -area, atol=1e-15)


@pytest.mark.slow
def test_foster_variance_against_simulation():
    """The residual given H, by brute force over 200 small steps: intercept 1/20, slope 1/5."""
    rows, steps = 100_000, 200
    bound = bind(Increments(21), rows, size=2)
    walk = torch.zeros(rows, 2, dtype=torch.float64)
    area, mean = torch.zeros(rows).double(), torch.zeros_like(walk)
    for k in range(steps):
        step = ask(bound, 0.0, 1 / steps, rows, k).W
        area += 0.5 * (walk[:, 0] * step[:, 1] - walk[:, 1] * step[:, 0])
        mean += (walk + step / 2) / steps
        walk += step
    space = mean - walk / 2
    residual = area - (space[:, 0] * walk[:, 1] - walk[:, 0] * space[:, 1])
    squares = space.square().sum(1)
    design = torch.stack((torch.ones_like(squares), squares), 1)
    fit = torch.linalg.lstsq(design, residual.square()[:, None]).solution.flatten()
    assert abs(fit[0] - 0.05) < 0.003 and abs(fit[1] - 0.2) < 0.02


@pytest.mark.skipif(generator() is None, reason="no C++ compiler")
@pytest.mark.parametrize("levy", [None, SpaceTime])
@pytest.mark.parametrize("depth", [1, 5, 20, 40])
def test_native_sums_have_the_bits_of_numpy(monkeypatch, levy, depth):
    rng = np.random.default_rng(depth)
    for rows, size in [(1, 1), (5, 3), (32, 4), (2, 300), (513, 1)]:
        for w, h in [(None, None), (torch.randn(rows, size), 0.3 if levy else None)]:
            path = Brownian(7, levy=levy, depth=depth, w=w, h=h)
            t, dt, times = 0.5 * rng.uniform(0, 1, rows), 0.5 * rng.uniform(0, 1, rows), rng.uniform(0, 1, (3, rows))

            def ask(path=path, rows=rows, size=size, t=t, dt=dt, times=times):
                bound = path.bind(0.0, 1.0, rows, size, torch.float64, row_offset=3)
                return *(x for x in bound.increment(t, dt)[1:] if x is not None), bound.value(times)

            drawn = ask()
            with monkeypatch.context() as patch:
                patch.setattr(brownian, "generator", lambda: None)
                patch.setattr(random, "generator", lambda: None)
                wanted = ask()
            assert all(torch.equal(a, b) for a, b in zip(drawn, wanted, strict=True))
