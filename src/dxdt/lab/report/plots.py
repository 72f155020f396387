"""Pictures: each function draws one figure and writes one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from dxdt.lab.data.datasets import Trajectory

DOTS, SCREEN = 150, 96
"""Pixels in an inch of a figure, and of a page."""

WIDEST = 8.8
"""Inches of a page: no figure is wider, so that none is shrunk with its letters."""

INK, BLUE, ORANGE, GREY = "#22262b", "#2463a8", "#d9731a", "#8a929c"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": "medium",
    "legend.fontsize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, or of its shape and the widest that a page holds."""
    if width > WIDEST:
        width, height = WIDEST, height * WIDEST / width
    figure = Figure(figsize=(width, height), dpi=DOTS, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def tile(images: Tensor, columns: int, *, pad: int = 1) -> np.ndarray:
    """Return images (n, 1, h, w) in [0, 1] as one picture with `columns` in a row."""
    n, _, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.ones((rows * (h + pad) + pad, columns * (w + pad) + pad))
    for k, image in enumerate(images[:, 0].clamp(0, 1).numpy()):
        y, x = pad + (k // columns) * (h + pad), pad + (k % columns) * (w + pad)
        canvas[y : y + h, x : x + w] = image
    return canvas


def _show(axis: Axes, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, color=INK)
    axis.set_axis_off()


def side_by_side(path: Path, sets: Mapping[str, Tensor], *, columns: int = 10) -> None:
    """Write sets of images (n, 1, h, w) in [0, 1] next to each other, each under its name."""
    with mpl.rc_context(STYLE):
        figure = new_figure(3.5 * len(sets), 3.85)
        axes = figure.subplots(1, len(sets), squeeze=False)[0]
        for axis, (title, images) in zip(axes, sets.items(), strict=True):
            _show(axis, tile(images, columns), title)
        write_figure(figure, path)


def course(path: Path, rows: Mapping[str, Sequence[Tensor]], times: Sequence[float]) -> None:
    """Write how samples change: one row per name, one column per time, images (1, h, w)."""
    with mpl.rc_context(STYLE):
        columns = len(times)
        figure = new_figure(0.8 * columns + 1.2, 0.8 * len(rows) + 0.4)
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for line, (name, images) in zip(axes, rows.items(), strict=True):
            for axis, image in zip(line, images, strict=True):
                picture = image[0].clamp(0, 1).numpy()
                axis.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
        for axis, t in zip(axes[0], times, strict=True):
            axis.set_title(f"t = {t:.2g}", color=INK)
        write_figure(figure, path)


def nearest(path: Path, samples: Tensor, neighbours: Tensor) -> None:
    """Write samples above their nearest training images, both (n, 1, h, w) in [0, 1]."""
    n = len(samples)
    with mpl.rc_context(STYLE):
        figure = new_figure(0.62 * n + 1.4, 1.75)
        axes = figure.subplots(2, 1)
        for axis, images, name in zip(axes, (samples, neighbours), ("samples", "nearest\nreal image"), strict=True):
            axis.imshow(tile(images, n), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            axis.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
        write_figure(figure, path)


def histogram(
    path: Path, shares: Mapping[str, Sequence[float]], errors: Mapping[str, Sequence[float]], *, label: str = "digit"
) -> None:
    """Write the share of each class with its standard error, one bar for every named set."""
    with mpl.rc_context(STYLE):
        figure = new_figure(6.4, 2.8)
        axis = figure.subplots()
        width = 0.8 / len(shares)
        for k, (name, values) in enumerate(shares.items()):
            at = np.arange(len(values)) + (k - (len(shares) - 1) / 2) * width
            bars: dict[str, Any] = {"ecolor": INK, "capsize": 1.5, "error_kw": {"linewidth": 0.8}}
            axis.bar(at, values, width, yerr=errors[name], label=name, color=(GREY, BLUE, ORANGE)[k % 3], **bars)
        axis.set_xticks(np.arange(len(next(iter(shares.values())))))
        axis.set_xlabel(label)
        axis.set_ylabel("share of images")
        top = max(v + e for name in shares for v, e in zip(shares[name], errors[name], strict=True))
        axis.set_ylim(0, 1.28 * top)
        axis.legend(ncols=len(shares), loc="upper center")
        write_figure(figure, path)


def distances(path: Path, sets: Mapping[str, Tensor]) -> None:
    """Write the distribution of distances to the nearest training image for every named set."""
    with mpl.rc_context(STYLE):
        figure = new_figure(6.4, 2.6)
        axis = figure.subplots()
        top = max(float(v.max()) for v in sets.values())
        bins = np.linspace(0, 1.02 * top, 36).tolist()
        for k, (name, values) in enumerate(sets.items()):
            color = (GREY, BLUE, ORANGE)[k % 3]
            style: dict[str, Any] = {"alpha": 0.45} if k == 0 else {"histtype": "step", "linewidth": 1.8}
            axis.hist(values.numpy(), bins, density=True, color=color, label=name, **style)
        axis.set_xlabel("distance to the nearest training image")
        axis.set_ylabel("density")
        axis.legend()
        write_figure(figure, path)


def losses(path: Path, series: Mapping[str, Sequence[dict[str, float]]]) -> None:
    """Write training losses against steps: every value pale, their running mean strong."""
    with mpl.rc_context(STYLE):
        columns = min(3, len(series))
        lines = -(-len(series) // columns)
        figure = new_figure(2.9 * columns if lines > 1 else 3.9 * columns, 2.4 * lines)
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis in axes[len(series) :]:
            axis.set_axis_off()
        for axis, (name, rows) in zip(axes, series.items(), strict=False):
            steps = np.array([row["step"] for row in rows])
            values = np.array([row["loss"] for row in rows])
            axis.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
            kernel = np.ones(min(9, len(values)))
            weight = np.convolve(np.ones_like(values), kernel, "same")
            mean = np.exp(np.convolve(np.log(values), kernel, "same") / weight)
            axis.plot(steps, mean, color=BLUE)
            axis.set_yscale("log")
            axis.set_title(name, color=INK)
            axis.set_xlabel("step")
        axes[0].set_ylabel("loss")
        write_figure(figure, path)


def trajectory(path: Path, data: Trajectory, ts: Tensor, ys: Tensor) -> None:
    """Write measurements, what was seen of them, the model's course, and the truth if known."""
    with mpl.rc_context(STYLE):
        count = data.ys.shape[1]
        figure = new_figure(9.0, 1.75 * count + 0.5)
        axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
        seen = data.trained
        edge = float(data.ts[seen - 1] + data.ts[seen]) / 2
        for k, axis in enumerate(axes):
            axis.axvspan(edge, float(data.ts[-1]), color="#f1f3f5", zorder=0)
            if data.truth is not None:
                axis.plot(*(v if v.ndim == 1 else v[:, k] for v in data.truth), color=GREY,
                          linewidth=1.2, linestyle=(0, (4, 2)), label="truth")  # fmt: skip
            axis.plot(ts, ys[:, k], color=BLUE, linewidth=1.6, label="neural ODE")
            axis.plot(data.ts[:seen], data.ys[:seen, k], "o", color=INK, markersize=2.6,
                      label="seen")  # fmt: skip
            axis.plot(data.ts[seen:], data.ys[seen:, k], "o", color=ORANGE, markersize=2.6,
                      label="never seen")  # fmt: skip
            axis.set_ylabel(data.names[k])
            axis.margins(x=0.01)
        axes[-1].set_xlabel("time")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
        write_figure(figure, path)


def stack(path: Path, parts: Sequence[Path]) -> None:
    """Write pictures below each other, scaled to one width."""
    images = [Image.open(part).convert("RGB") for part in parts]
    width = max(image.width for image in images)
    scaled = [i.resize((width, i.height * width // i.width)) for i in images]
    whole = Image.new("RGB", (width, sum(i.height for i in scaled)), "white")
    top = 0
    for image in scaled:
        whole.paste(image, (0, top))
        top += image.height
    whole.save(path)


def to_unit(images: Tensor) -> Tensor:
    """Return images in [-1, 1] on the scale [0, 1] of the pictures."""
    return torch.clamp((images + 1) / 2, 0, 1)
