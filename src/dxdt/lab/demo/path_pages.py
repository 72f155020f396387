"""What the demonstration's report says of neural SDEs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dxdt.lab.demo import path_plots
from dxdt.lab.evaluation.two_sample import Verdict
from dxdt.lab.report.page import Picture, Section, Table
from dxdt.lab.training.ensemble import Ensemble, EnsembleModel


def ensemble(
    folder: Path,
    name: str,
    data: Ensemble,
    model: EnsembleModel,
    drawn: Tensor,
    found: Mapping[str, Mapping[str, Verdict]],
) -> Section:
    """Show paths of the data and of the model, and test whether their laws can be told apart."""
    path = folder / f"{name}.png"
    path_plots.ensembles(path, data.ts, data.held_out, drawn, data.names, data.unit)
    pictures = [
        Picture(
            path,
            f"Left: {min(path_plots.SHOWN, len(data.held_out))} paths that the model has never seen. Middle: as many "
            f"paths of the model, which began where other data began. Bands and lines are quantiles of all "
            f"{len(data.held_out)}; dashed are those of the data. Right: the laws at the end, grey the data.",
        )
    ]
    if data.truth is not None:
        pictures.append(_fields(folder / f"{name}_fields.png", data, model))
    rows = [
        [f"{kind}: {what}", f"{it.distance:.4f}", f"{it.limit:.4f}", f"{it.p:.3f}"]
        for kind, verdicts in found.items()
        for what, it in verdicts.items()
    ]
    head = ["held-out data against", "energy distance", "95 % of random splits below", "p"]
    if data.truth is not None:
        return Section("A neural SDE between two wells", _SIMULATED, Table(head, rows), pictures)
    return Section("A neural SDE of a day's air", _MEASURED, Table(head, rows), pictures)


@torch.no_grad()
def _fields(path: Path, data: Ensemble, model: EnsembleModel) -> Picture:
    assert data.truth is not None
    y = data.held_out.flatten(0, 1)
    low, high = torch.quantile(y[:, 0], torch.tensor([0.002, 0.998])).tolist()
    at = torch.linspace(low, high, 200).unsqueeze(-1)
    now = data.ts[0]
    drift, diffusion = model.fields(now, at)
    known = [field(now, at)[:, 0] for field in data.truth]
    path_plots.fields(path, at[:, 0], known, [drift[:, 0], diffusion[:, 0, 0]], y)
    return Picture(path, "The equation behind the data, and the one learned; grey: where the data are.")


_SIMULATED = [
    "Random paths start on a ridge between two wells, fall into one of them, and tremble there, more in the right "
    "one than in the left. Two networks are to find the equation behind them, dy = f(y) dt + g(y) dW: what pulls, f, "
    "and how strong the noise is, g. First single transitions are made likely, each taken as one Euler step. The data "
    "are read too rarely for that to be exact, so the networks are then trained through an SDE solver with five "
    "steps between readings: bundles of short paths are solved from states of the data, and the energy score says "
    "how well a bundle foretold what came next.",
    "New paths are compared with data held out, as whole paths and by their increments. The energy distance is zero "
    "on average where two laws agree; p is the share of random splits of both sets together that lie as far apart, "
    "so small values tell the laws apart.",
]
_MEASURED = [
    "Fine dust and ozone at twelve stations in Beijing, hour by hour: a path is one day, and the days shown were held "
    "out at all stations. Drift and noise may depend on the hour. Whole days of the model can be compared with real "
    "ones by the same test. Increments are harder: rain and wind make real readings jump, and instruments round small "
    "ones, which no equation with Gaussian noise in two variables does.",
]
