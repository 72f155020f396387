"""Pictures of ensembles of paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from dxdt.lab.report.plots import BLUE, GREY, INK, ORANGE, STYLE, new_figure, write_figure

SHOWN = 60
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def ensembles(path: Path, ts: Tensor, real: Tensor, model: Tensor, names: Sequence[str], unit: str) -> None:
    """Write paths of the data beside paths of the model, their quantiles, and the law at the end.

    Args:
        ts: (times,).
        real, model: (paths, times, features).
        names: of the features.
        unit: of time.
    """
    with mpl.rc_context(STYLE):
        rows = len(names)
        figure = new_figure(9.6, 2.6 * rows + 0.5)
        grid = figure.subplots(rows, 3, sharex="col", sharey="row", squeeze=False, width_ratios=(1, 1, 0.42))
        for k, (left, middle, right) in enumerate(grid):
            _paths(left, ts, real[..., k], INK)
            _paths(middle, ts, model[..., k], BLUE)
            _quantiles(middle, ts, real[..., k], INK, dashed=True)
            _ends(right, real[:, -1, k], model[:, -1, k])
            left.set_ylabel(names[k])
            low, high = _range(torch.cat((real[..., k], model[..., k])))
            left.set_ylim(low, high)
        grid[0, 0].set_title("data, never seen", color=INK)
        grid[0, 1].set_title("neural SDE", color=INK)
        grid[0, 2].set_title(f"at {_clock(float(ts[-1]), unit)}", color=INK)
        for axis in grid[-1, :2]:
            axis.set_xlabel(unit or "time")
        _legend(figure, grid[0, 0])
        write_figure(figure, path)


def _clock(t: float, unit: str) -> str:
    return f"{unit} {t:g}" if unit else f"t = {t:g}"


def _range(x: Tensor) -> tuple[float, float]:
    low, high = torch.quantile(x.flatten()[:: max(1, x.numel() // 100_000)], torch.tensor([0.002, 0.998])).tolist()
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _paths(axis: Axes, ts: Tensor, ys: Tensor, color: str) -> None:
    axis.plot(ts, ys[:SHOWN].T, color=color, alpha=0.22, linewidth=0.6)
    levels = torch.quantile(ys, torch.tensor(_LEVELS), dim=0)
    axis.fill_between(ts, levels[0], levels[-1], color=color, alpha=0.10, linewidth=0)
    axis.fill_between(ts, levels[1], levels[-2], color=color, alpha=0.13, linewidth=0)
    axis.plot(ts, levels[2], color=color, linewidth=1.8)
    axis.margins(x=0)


def _quantiles(axis: Axes, ts: Tensor, ys: Tensor, color: str, *, dashed: bool) -> None:
    levels = torch.quantile(ys, torch.tensor(_LEVELS), dim=0)
    for level, width in zip(levels, (0.9, 0.9, 1.4, 0.9, 0.9), strict=True):
        axis.plot(ts, level, color=color, linewidth=width, linestyle=(0, (4, 3)) if dashed else "-")


def _ends(axis: Axes, real: Tensor, model: Tensor) -> None:
    both = torch.cat((real, model))
    bins = np.linspace(float(both.min()), float(both.max()), 36).tolist()
    style: dict[str, Any] = {"density": True, "orientation": "horizontal"}
    axis.hist(real.numpy(), bins, color=GREY, alpha=0.45, **style)
    axis.hist(model.numpy(), bins, color=BLUE, histtype="step", linewidth=1.6, **style)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)


def _legend(figure: Any, axis: Axes) -> None:
    (band,) = axis.fill(np.nan, np.nan, color=GREY, alpha=0.35, linewidth=0)
    (middle,) = axis.plot([], [], color=GREY, linewidth=1.8)
    (dashes,) = axis.plot([], [], color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    names = ["5, 25, 75, 95 %", "median", "quantiles of the data"]
    figure.legend([band, middle, dashes], names, loc="outside lower center", ncols=3)


def fields(path: Path, at: Tensor, known: Sequence[Tensor], found: Sequence[Tensor], weight: Tensor) -> None:
    """Write drift and diffusion against their truth; grey shows where the data lie.

    Args:
        at: states (n,).
        known, found: drift and diffusion there.
        weight: states of the data, any shape.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(9.6, 2.7)
        axes = figure.subplots(1, 2)
        for axis, truth, model, name in zip(axes, known, found, ("drift f", "diffusion g"), strict=True):
            crowd = axis.twinx()
            crowd.hist(weight.flatten().numpy(), 60, color=GREY, alpha=0.25)
            crowd.set_axis_off()
            axis.set_zorder(crowd.get_zorder() + 1)
            axis.patch.set_visible(False)
            axis.plot(at, truth, color=ORANGE, linewidth=3.2, alpha=0.75, label="truth")
            axis.plot(at, model, color=BLUE, linewidth=1.8, label="learned")
            axis.set_xlabel("y")
            axis.set_title(name, color=INK)
            axis.margins(x=0)
        axes[0].legend()
        write_figure(figure, path)
