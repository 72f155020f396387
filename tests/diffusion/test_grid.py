"""Grids of times: exact ends, strictly falling, inside the process."""

import pytest
import torch

from dxdt.diffusion import (
    VP,
    Angle,
    CosineTime,
    Given,
    Karras,
    Landing,
    LogSNR,
    Process,
    Quadratic,
    RectifiedFlow,
    Time,
    TimeGrid,
)
from processes import PROCESSES, ends

GRIDS = [Time(), Quadratic(), CosineTime(), LogSNR(), Karras(), Karras(3.0), Angle(), Angle(spread=2.0)]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_grids_fall_from_end_to_end(grid: TimeGrid, process: Process):
    low, high = ends(process)
    for steps in (1, 7, 50):
        times = grid(process, steps, high, low)
        assert times.dtype == torch.float64 and times.shape == (steps + 1,)
        assert times[0] == high and times[-1] == low and (times.diff() < 0).all()


def test_what_is_divided_evenly():
    times = LogSNR()(VP(), 10)
    steps = VP().lam(times).diff()
    assert torch.allclose(steps, steps.mean().expand_as(steps), atol=1e-9)
    root = torch.exp(-VP().lam(Karras()(VP(), 10)) / 7).diff()
    assert torch.allclose(root, root.mean().expand_as(root), atol=1e-9)
    root = Quadratic()(VP(), 10).sqrt().diff()
    assert torch.allclose(root, root.mean().expand_as(root))


def test_angles_are_even_and_the_last_one_leads_to_the_data():
    for steps in (2, 5, 9):
        last = Angle().before_data(VP(), steps)
        lam = VP().lam(Angle()(VP(), steps - 1, 1.0, last))
        angle = ((-1 - lam) / max(2.0, 0.3 * steps)).exp().atan()
        assert torch.allclose(angle.diff(), -angle[-1].expand(steps - 1), atol=1e-9)
    assert Angle().before_data(VP(), 50) == VP().t0
    many = VP().lam(Angle(spread=1e4)(VP(), 10))
    assert torch.allclose(many, VP().lam(LogSNR()(VP(), 10)), atol=1e-2)


def test_angles_begin_at_pure_noise_and_may_end_in_the_data():
    times = Angle()(RectifiedFlow(), 6, 1.0, 0.0)
    assert times[0] == 1 and times[-1] == 0 and bool((times.diff() < 0).all())
    low = Angle(lowest=-100.0)(RectifiedFlow(), 6)
    assert low[1] > Angle()(RectifiedFlow(), 6)[1]


def test_each_sample_has_its_own_ends():
    starts = torch.tensor([1.0, 0.5])
    times = Karras()(VP(), 6, starts)
    assert times.shape == (7, 2)
    assert torch.equal(times[:, 1], Karras()(VP(), 6, 0.5))


def test_a_landing_ends_at_zero():
    times = Landing(Karras())(VP(), 6)
    assert times[-1] == 0 and torch.equal(times[:-1], Karras()(VP(), 5))


def test_what_cannot_work_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="give at least 1"):
        Time()(VP(), 0)
    for t1, t0 in ((1.5, 0.1), (0.5, 0.6), (0.5, -0.1)):
        with pytest.raises(ValueError, match="inside the process"):
            Time()(VP(), 4, t1, t0)
    for grid in (LogSNR(), Karras()):
        with pytest.raises(ValueError, match="infinite"):
            grid(RectifiedFlow(), 4)
    with pytest.raises(ValueError, match="two or more"):
        Given([0.1, 0.5])
    with pytest.raises(ValueError, match="not 5"):
        Given([1.0, 0.5])(VP(), 5)
    with pytest.raises(ValueError, match="leave it out"):
        Given([1.0, 0.5])(VP(), t1=0.9)
    with pytest.raises(ValueError, match="inside the process"):
        Given([2.0, 0.5])(VP())
    with pytest.raises(ValueError, match="not positive"):
        Karras(0.0)
    with pytest.raises(ValueError, match="not positive"):
        Angle(spread=0.0)
    with pytest.raises(ValueError, match="at least 2"):
        Landing(Time())(VP(), 1)
