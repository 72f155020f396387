"""Splines: the polynomials they should be, missing data, causality, batching, gradients."""

import numpy as np
import pytest
import torch

from dxdt.paths import Path, fill, hermite, linear, natural, rectilinear

ALL = [linear, hermite, natural]
NAN = float("nan")


def data(batch=(3,), n=9, channels=4, missing=0.3, seed=0):
    g = torch.Generator().manual_seed(seed)
    ts = torch.rand(n, generator=g, dtype=torch.float64).add(0.1).cumsum(0)
    xs = torch.randn(*batch, n, channels, generator=g, dtype=torch.float64)
    xs[torch.rand(xs.shape, generator=g) < missing] = NAN
    return ts, xs


@pytest.mark.parametrize("spline", ALL)
def test_passes_through_what_was_observed(spline):
    ts, xs = data()
    path = spline(ts, xs)
    assert isinstance(path, Path) and path.t0 == ts[0] and path.t1 == ts[-1]
    at_knots = torch.stack([path(t) for t in ts], -2)
    seen = ~torch.isnan(xs)
    assert torch.allclose(at_knots[seen], xs[seen], atol=1e-12)
    assert torch.isfinite(at_knots).all()


@pytest.mark.parametrize("spline", ALL)
def test_derivative(spline):
    ts, xs = data(missing=0.2)
    path = spline(ts, xs)
    t = torch.linspace(ts[0].item() + 0.013, ts[-1].item() - 0.01, 41).double()[:, None]
    difference = (path(t + 1e-6) - path(t - 1e-6)) / 2e-6
    assert torch.allclose(path.derivative(t), difference, atol=1e-7)


def test_continuity():
    ts, xs = data(n=12)
    inner = ts[1:-1, None]
    for spline, orders in ((linear, 1), (hermite, 2), (natural, 2)):
        path = spline(ts, xs)
        for f in (path, path.derivative)[:orders]:
            assert torch.allclose(f(inner - 1e-10), f(inner), atol=1e-7), spline


def test_natural_is_scipys():
    interpolate = pytest.importorskip("scipy.interpolate")
    ts, xs = data(n=20, missing=0.4)
    xs[:, 0], xs[:, -1] = 1.0, -1.0
    path = natural(ts, xs)
    t = np.linspace(ts[0].item(), ts[-1].item(), 101)
    for b in range(3):
        for c in range(4):
            seen = ~torch.isnan(xs[b, :, c])
            reference = interpolate.CubicSpline(ts[seen], xs[b, seen, c], bc_type="natural")
            ours = path(torch.from_numpy(t)[:, None])[:, b, c]
            assert np.allclose(ours, reference(t), atol=1e-10)
            slope = path.derivative(torch.from_numpy(t)[:, None])[:, b, c]
            assert np.allclose(slope, reference(t, 1), atol=1e-9)


def test_long_natural_spline_is_accurate():
    ts = torch.linspace(0, 6 * torch.pi, 2001).double()
    path = natural(ts, torch.sin(ts)[:, None])
    t = torch.linspace(0.1, 18, 777).double()
    assert (path(t)[:, 0] - t.sin()).abs().max() < 1e-9


def test_hermite_formula():
    ts = torch.tensor([0.0, 1.0, 3.0]).double()
    path = hermite(ts, torch.tensor([[1.0], [3.0], [2.0]]).double())
    assert path.derivative(0.0) == 2 and path.derivative(0.7) == pytest.approx(2)
    assert path.derivative(1.0) == 2 and path.derivative(3.0) == pytest.approx(-0.5)
    assert path(2.0) == pytest.approx(3 + 2 - 2.5 + 0.625)


def test_missing_values():
    ts = torch.tensor([0.0, 1.0, 2.0, 4.0])
    xs = torch.tensor([[NAN, 1.0, NAN, NAN], [2.0, NAN, NAN, NAN], [NAN, NAN, NAN, 5.0], [4.0, 3.0, NAN, NAN]])
    expected = [
        [2.0, 1.0, 0.0, 5.0],
        [2.0, 1.5, 0.0, 5.0],
        [2 + 2 / 3, 2.0, 0.0, 5.0],
        [4.0, 3.0, 0.0, 5.0],
    ]
    assert torch.allclose(fill(ts, xs), torch.tensor(expected))
    for spline in ALL:
        assert (spline(ts, xs).coefficients[..., 2] == 0).all()
        assert (spline(ts, xs)(3.0)[3] - 5).abs() < 1e-6


def test_rectilinear_moves_time_first():
    ts = torch.tensor([0.0, 1.0, 3.0])
    path = rectilinear(ts, torch.tensor([[NAN, 1.0], [2.0, NAN], [4.0, 3.0]]), start=-1.0)
    expected = [[0, -1, 1], [1, -1, 1], [1, 2, 1], [3, 2, 1], [3, 4, 3]]
    assert torch.equal(path(torch.arange(5.0)), torch.tensor(expected).float())
    assert path.t1 == 4 and torch.equal(path.derivative(2.5), torch.tensor([2.0, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("spline", "ahead"), [(rectilinear, 0), (linear, 1), (hermite, 1)], ids=["rectilinear", "linear", "hermite"]
)
def test_the_future_does_not_move_the_past(spline, ahead):
    ts, xs = data(missing=0.0)
    later = xs.clone()
    later[:, 5:] += 1
    a, b = spline(ts, xs), spline(ts, later)
    last = a.knots[2 * 5 - 1] if spline is rectilinear else ts[5 - ahead]
    t = torch.linspace(0, 1, 21).double()[:, None] * (last - a.t0) + a.t0
    assert torch.equal(a(t[:-1]), b(t[:-1]))


def test_time_shapes():
    ts, xs = data(missing=0.1)
    rows = ts + torch.tensor([0.0, 10.0, 20.0]).double()[:, None]
    for spline in ALL:
        one, many = spline(ts, xs), spline(rows, xs)
        times = torch.tensor([0.5, 1.7, 3.1]).double()
        assert one(0.5).shape == (3, 4) and one(times[:2, None]).shape == (2, 3, 4)
        each = torch.stack([spline(ts, xs[r])(times[r]) for r in range(3)])
        assert torch.allclose(one(times), each, atol=1e-13)
        assert torch.allclose(many(times + rows[:, 0] - ts[0]), each, atol=1e-12)
    assert linear(ts, xs[0])(times).shape == (3, 4)


def test_float32_data_with_float64_times():
    ts, xs = data(missing=0.1)
    path = hermite(ts, xs.float())
    assert path(torch.tensor(0.5, dtype=torch.float32)).dtype == torch.float32


@pytest.mark.parametrize("spline", ALL)
def test_gradients(spline):
    ts, xs = data(batch=(), n=5, channels=2, missing=0.0)
    xs[2, 0] = NAN
    seen = ~torch.isnan(xs)

    def value(ts, seen_xs, t):
        x = torch.full_like(xs, NAN).masked_scatter(seen, seen_xs)
        path = spline(ts, x)
        return path(t), path.derivative(t)

    inputs = (ts, xs[seen], torch.tensor(1.1).double())
    assert torch.autograd.gradcheck(value, [x.clone().requires_grad_() for x in inputs])


@pytest.mark.parametrize("spline", [*ALL, rectilinear])
def test_bad_data(spline):
    ts, xs = data()
    for bad, message in (
        ((ts[:-1], xs), "do not fit"),
        ((ts, xs[0, 0]), "do not fit"),
        ((ts.expand(2, -1), xs), "one row for each element"),
        ((ts.flip(0), xs), "increase strictly"),
        ((ts * NAN, xs), "increase strictly"),
        ((ts[:1], xs[:, :1]), "two times"),
    ):
        with pytest.raises(ValueError, match=message):
            spline(*bad)
