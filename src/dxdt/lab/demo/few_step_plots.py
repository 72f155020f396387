"""Pictures of samplers of a few steps: their samples side by side, and distances against evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.ticker import FormatStrFormatter, LogLocator
from torch import Tensor

from dxdt.lab.report.plots import BLUE, GREY, INK, ORANGE, STYLE, new_figure, tile, write_figure

COLOURS = (BLUE, ORANGE, "#2e8b57", "#8a4fbf", "#c23b4b", "#1f9aa6", "#b58900", "#e377c2", GREY, INK)
MARKS = "osD^vP*X<>"


def side_by_side(path: Path, rows: Mapping[str, Sequence[Tensor]], titles: Sequence[str], *, lines: int = 1) -> None:
    """Write samples: one row for each name, one column for each title, images (n, 1, h, w) in [0, 1].

    Args:
        path: of the PNG.
        rows: for each name one set of images for each title.
        titles: of the columns.
        lines: in which a set is laid out.
    """
    with mpl.rc_context(STYLE):
        count = -(-max(len(x) for sets in rows.values() for x in sets) // lines)
        figure = new_figure(0.3 * count * len(titles) + 3.0, 0.4 * lines * len(rows) + 0.5)
        axes = figure.subplots(len(rows), len(titles), squeeze=False)
        for line, (name, sets) in zip(axes, rows.items(), strict=True):
            for axis, images in zip(line, sets, strict=True):
                axis.imshow(tile(images, count), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title, color=INK)
        write_figure(figure, path)


def distances(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write distances with two standard errors against evaluations; rows as of the experiment few_steps."""
    with mpl.rc_context(STYLE):
        figure = new_figure(7.6, 4.2)
        axis = figure.subplots()
        for k, name in enumerate(dict.fromkeys(r["sampler"] for r in rows)):
            own = [r for r in rows if r["sampler"] == name]
            axis.errorbar([r["evaluations"] for r in own], [r["distance"] for r in own],
                          [2 * r["error"] for r in own], color=COLOURS[k % 10], marker=MARKS[k % 10], markersize=5,
                          linewidth=1.3, capsize=2, label=name)  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="evaluations of the network", ylabel="distance to the test digits")
        budgets = sorted({r["budget"] for r in rows})
        axis.set_xticks(budgets, [str(b) for b in budgets])
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.minorticks_off()
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        write_figure(figure, path)


def convergence(path: Path, curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> None:
    """Write distances from a converged solution against evaluations, with slopes of orders 1 to 3 beside."""
    with mpl.rc_context(STYLE):
        figure = new_figure(6.4, 3.6)
        axis = figure.subplots()
        for k, (name, (calls, apart)) in enumerate(curves.items()):
            axis.plot(calls, apart, color=COLOURS[k], marker=MARKS[k], markersize=4, linewidth=1.4, label=name)
        calls = [n for n, _ in curves.values()]
        first, last = min(map(min, calls)), max(map(max, calls))
        seen = [x for _, apart in curves.values() for x in apart]
        low, top = 0.5 * min(seen), max(seen)
        for order in (1, 2, 3):
            end = top * (first / last) ** order
            axis.plot([first, last], [top, end], color=GREY, linewidth=0.9, linestyle=":")
            stop = last if end > low else first * (top / low) ** (1 / order)
            axis.annotate(f"order {order}", (stop, max(end, low)), color=GREY, xytext=(3, 0),
                          textcoords="offset points", va="bottom")  # fmt: skip
        axis.set(xscale="log", yscale="log", ylim=(low, None), xlabel="evaluations of the network", ylabel="distance")
        ticks = [n for n in (5, 10, 20, 40, 80, 160) if first <= n <= last]
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.minorticks_off()
        axis.legend(loc="center left", bbox_to_anchor=(1.05, 0.5))
        write_figure(figure, path)
