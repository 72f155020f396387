"""Pictures of times: over batch sizes for each problem, and over what grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dxdt.ops.optional import require

__all__ = ["plot_curves", "plot_rows"]

# Colours that stay apart for eyes that see fewer (Okabe and Ito); dxdt has the same everywhere.
_OURS = {"dxdt-compiled": "#0072B2", "dxdt, compiled": "#0072B2", "dxdt": "#56B4E9"}
_OTHERS = ("#D55E00", "#009E73", "#E69F00", "#CC79A7", "#7F7F7F", "#000000")


class _Timed(Protocol):
    problem: str
    batch: int
    work: str
    peer: str
    times: Any


class _Placed(Protocol):
    axis: str
    peer: str
    seconds: float
    low: float
    high: float

    @property
    def value(self) -> float: ...


def _figure(rows: int, columns: int) -> tuple[Any, Any, Any]:
    require("matplotlib", "lab").use("Agg")
    plt: Any = require("matplotlib.pyplot", "lab")
    size = (3.3 * columns + 0.4, 2.9 * rows + 0.5)
    return plt, *plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def _colours(peers: Sequence[str]) -> dict[str, str]:
    rest = iter(_OTHERS * 4)
    return {name: _OURS.get(name) or next(rest) for name in peers}


def _curve(axis: Any, name: str, colour: str, points: Sequence[tuple[float, float, float, float]]) -> None:
    """One line through medians over the band of quartiles: value, low, median, high in seconds."""
    points = sorted(points)
    x, low, middle, high = ([p[0] for p in points], *([1e3 * p[i] for p in points] for i in (1, 2, 3)))
    ours = name.startswith("dxdt")
    style = {"marker": "o", "ms": 4.5 if ours else 3.5, "lw": 2 if ours else 1.2, "zorder": 3 if ours else 2}
    axis.plot(x, middle, label=name, color=colour, **style)
    axis.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)


def _dress(axis: Any, title: str, what: str, values: Sequence[float], first: bool) -> None:
    axis.set(xscale="log", yscale="log", xlabel=what)
    axis.set_title(title, fontsize=10)
    values = sorted(set(values))
    axis.set_xticks(values, [f"{v:g}" for v in values])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.25, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if first:
        axis.set_ylabel("milliseconds of a solve")


def _finish(plt: Any, figure: Any, axis: Any, path: Path) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_rows(rows: Sequence[Any], path: Path) -> None:
    """Times over batch sizes: a panel for each problem and kind of work.

    Args:
        rows: lines of the table.
        path: where to write it.
    """
    timed: list[_Timed] = list(rows)
    problems, works, peers = (
        list(dict.fromkeys(getattr(r, name) for r in timed)) for name in ("problem", "work", "peer")
    )
    plt, figure, axes = _figure(len(works), len(problems))
    colours = _colours(peers)
    for i, work in enumerate(works):
        for j, problem in enumerate(problems):
            here = [r for r in timed if (r.problem, r.work) == (problem, work)]
            for peer in peers:
                times = [(r.batch, r.times) for r in here if r.peer == peer]
                _curve(axes[i][j], peer, colours[peer], [(b, t.low, t.median, t.high) for b, t in times])
            _dress(axes[i][j], f"{problem}, {work}", "batch", [r.batch for r in here], j == 0)
    _finish(plt, figure, axes[0][0], path)


def plot_curves(points: Sequence[Any], titles: Mapping[str, str], path: Path) -> None:
    """Times over what grows: a panel for each axis, with its title.

    Args:
        points: of all curves.
        titles: what stays as it is, by axis.
        path: where to write it.
    """
    placed: list[_Placed] = list(points)
    names, peers = (list(dict.fromkeys(getattr(p, name) for p in placed)) for name in ("axis", "peer"))
    plt, figure, axes = _figure(1, len(names))
    colours = _colours(peers)
    for j, name in enumerate(names):
        here = [p for p in placed if p.axis == name]
        for peer in peers:
            some = [(p.value, p.low, p.seconds, p.high) for p in here if p.peer == peer]
            _curve(axes[0][j], peer, colours[peer], some)
        values = [p.value for p in here if p.peer == here[0].peer]
        _dress(axes[0][j], titles[name], name, values, j == 0)
    _finish(plt, figure, axes[0][0], path)
