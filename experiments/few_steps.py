"""Samplers of 5, 10, 20 and 50 evaluations on a published model: whose digits are most like real ones.

A small published DDPM of MNIST draws digits from the same initial noise by every sampler. They are
compared with the test digits in the features of a published classifier (Frechet distance). Standard errors,
of distances and of their differences from the default sampler's, are those of a bootstrap that redraws the
same samples and the same test digits for every sampler.

    python -m experiments.few_steps [folder] [--quick] [--collect]

Every set of samples is drawn once: a run that was stopped goes on. Needs DXDT_DATA, and diffusers.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dxdt.diffeq import Corrector, Exponential, Inside, Rising
from dxdt.diffusion import DDIM, Ancestral, Denoiser
from dxdt.lab.data.folder import data_folder
from dxdt.lab.data.readers import open_images
from dxdt.lab.demo import few_step_plots
from dxdt.lab.demo.few_step_samplers import Foreign, InPieces, Ours, Sampler
from dxdt.lab.evaluation.classifiers import MnistNet, mnist_cnn
from dxdt.lab.evaluation.fidelity import Moments, features_of, frechet
from dxdt.lab.evaluation.pretrained import mnist_ddpm
from dxdt.lab.evaluation.weights import read_weights
from dxdt.lab.runs.files import load_checkpoint, save_checkpoint
from dxdt.lab.runs.run import Run
from dxdt.ops.files import write_atomic

__all__ = ["FewSteps", "quick", "run", "table"]

SHAPE = (1, 28, 28)
SHOWN = 12


@dataclass(frozen=True)
class FewSteps:
    """Settings of the comparison.

    Attributes:
        budgets: evaluations of the network.
        samples: of every sampler, budget and seed.
        seeds: of the initial noise, common to all samplers.
        resamples: of the bootstrap.
        reference: test digits to compare with.
        piece: digits that the network is asked for at once.
        half: multiply in bfloat16.
    """

    budgets: tuple[int, ...] = (5, 10, 20, 50)
    samples: int = 2000
    seeds: tuple[int, ...] = (0, 1, 2)
    resamples: int = 20
    reference: int = 10_000
    piece: int = 100
    half: bool = True


def quick() -> FewSteps:
    """Return settings of seconds, for tests."""
    return FewSteps(budgets=(5, 6), samples=20, seeds=(0,), resamples=3, reference=60, piece=20)


@functools.cache
def _betas() -> Tensor:
    return read_weights(_folder() / "weights" / "ddpm_mnist_starter.pth", "a DDPM of MNIST")["beta_t"]


DEFAULT = "default: Exponential(2)"
SAMPLERS: dict[str, Sampler] = {
    DEFAULT: Ours(),
    "DPM-Solver++ 2M (diffusers)": Foreign("DPMSolverMultistepScheduler", 2, _betas),
    "UniPC 2 (diffusers)": Foreign("UniPCMultistepScheduler", 2, _betas),
    "UniPC 3 (diffusers)": Foreign("UniPCMultistepScheduler", 3, _betas),
    "Exponential(3)": Ours(Exponential(order=3)),
    "Exponential(3), corrector": Ours(Exponential(order=3, corrector=Corrector(), start=Rising())),
    "Exponential(2), SDE": Ours(Exponential(order=2), tau=1.0),
    "DDIM": Ours(DDIM()),
    "ancestral": Ours(Ancestral(), tau=1.0),
    "Exponential(3), one step": Ours(Exponential(order=3, nodes=Inside())),
}


@dataclass(frozen=True)
class Cell:
    """One set of samples.

    Attributes:
        evaluations: calls of the network.
        seconds: of the processor.
        distances: squared Frechet distance to the test digits, and that of every resample.
        images: (SHOWN, 1, 28, 28), the first samples in [0, 1].
    """

    evaluations: int
    seconds: float
    distances: list[float]
    images: Tensor


def _folder() -> Path:
    folder = data_folder()
    if folder is None:
        raise FileNotFoundError("the model and MNIST are read from the folder that DXDT_DATA names; set it.")
    return folder


class Bench:
    """The denoiser, the feature network, and moments of the test digits and of their resamples."""

    def __init__(self, settings: FewSteps, folder: Path) -> None:
        self.settings = settings
        loaded = mnist_ddpm(folder)
        net = InPieces(loaded.net, settings.piece, settings.half)
        self.denoiser = Denoiser(net, loaded.process, clock=loaded.clock)
        self.net: MnistNet = mnist_cnn(folder)
        digits, _ = open_images("mnist", "test").read(torch.arange(settings.reference))
        reference = features_of(self.net, (digits.float() / 255).split(500))
        self.reference = [Moments.of(x) for x in self._drawn(reference, seed=0)]

    def _drawn(self, rows: Tensor, seed: int) -> list[Tensor]:
        """The rows, and those of every resample."""
        generator = torch.Generator().manual_seed(seed)
        n = len(rows)
        picked = [torch.randint(n, (n,), generator=generator) for _ in range(self.settings.resamples)]
        return [rows, *(rows[k] for k in picked)]

    @torch.no_grad()
    def cell(self, sampler: Sampler, budget: int, seed: int) -> Cell:
        """Draw one set and measure it."""
        begun = time.process_time()
        drawn = sampler(self.denoiser, (self.settings.samples, *SHAPE), budget, seed)
        seconds = time.process_time() - begun
        images = (drawn.x + 0.5).clamp(0, 1)
        sets = self._drawn(features_of(self.net, images.split(500)), seed + 1)
        distances = [frechet(b, Moments.of(a)) for a, b in zip(sets, self.reference, strict=True)]
        return Cell(drawn.evaluations, seconds, distances, images[:SHOWN].clone())


def _kept(path: Path) -> Cell | None:
    if not path.exists():
        return None
    tensors, about = load_checkpoint(path)
    return Cell(about["evaluations"], about["seconds"], about["distances"], tensors["images"])


def _place(folder: Path, name: str, budget: int, seed: int) -> Path:
    plain = "".join(c if c.isalnum() else "_" for c in name)
    return folder / "cells" / f"{plain}-{budget}-{seed}.safetensors"


def run(settings: FewSteps, folder: Path, *, fresh: bool = False, samplers: Mapping[str, Sampler] = SAMPLERS) -> Any:
    """Draw and measure what is not in `folder` yet, and write table, plot and pictures there.

    Returns:
        The settings and one row for every sampler and budget.

    Raises:
        FileNotFoundError: DXDT_DATA is not set, or a file is missing there.
        ValueError: the folder holds a run with other settings.
    """
    kept = Run(folder, settings, fresh=fresh).folder
    bench = None
    for seed in settings.seeds:
        for budget in sorted(settings.budgets):
            for name, sampler in samplers.items():
                path = _place(kept, name, budget, seed)
                if path.exists():
                    continue
                bench = bench or Bench(settings, _folder())
                cell = bench.cell(sampler, budget, seed)
                about = {k: v for k, v in vars(cell).items() if k != "images"}
                save_checkpoint(path, {"images": cell.images}, about)
                print(f"{name}, {budget}, seed {seed}: {cell.distances[0]:.2f} {cell.seconds:.0f} s", flush=True)
    return collect(settings, kept)


def collect(settings: FewSteps, folder: Path) -> dict[str, Any]:
    """Put together what a run has drawn so far, and write table, plot and pictures."""
    places = itertools.product(SAMPLERS, settings.budgets, settings.seeds)
    found = {place: _kept(_place(folder, *place)) for place in places}
    cells = {place: cell for place, cell in found.items() if cell is not None}
    rows = [_row(cells, *place) for place in itertools.product(SAMPLERS, settings.budgets)]
    result = {"settings": asdict(settings), "rows": [row for row in rows if row is not None]}
    _write(folder, result, cells, settings)
    return result


def _row(cells: Mapping[tuple[str, int, int], Cell], name: str, budget: int) -> dict[str, Any] | None:
    """Means over the seeds, with bootstrap standard errors of them and of the difference from the default."""
    seeds = [s for n, b, s in cells if (n, b) == (name, budget) and (DEFAULT, b, s) in cells]
    if not seeds:
        return None

    def mean(of: str) -> Tensor:
        return torch.tensor([cells[of, budget, s].distances for s in seeds], dtype=torch.float64).mean(0)

    own, apart = mean(name), mean(name) - mean(DEFAULT)
    found = [cells[name, budget, s] for s in seeds]
    return {
        "sampler": name,
        "budget": budget,
        "evaluations": found[0].evaluations,
        "distance": own[0].item(),
        "error": own[1:].std().item(),
        "difference": apart[0].item(),
        "difference_error": apart[1:].std().item(),
        "each": [cell.distances[0] for cell in found],
        "seconds": sum(cell.seconds for cell in found),
    }


def table(result: dict[str, Any]) -> str:
    """Return the rows as a table in Markdown: one line a sampler, one column a budget."""
    budgets = result["settings"]["budgets"]
    head = "| sampler | " + " | ".join(f"{b} evaluations | minus default" for b in budgets) + " |"
    lines = [head, "|---|" + "---:|---:|" * len(budgets)]
    found = {(r["sampler"], r["budget"]): r for r in result["rows"]}
    for name in dict.fromkeys(r["sampler"] for r in result["rows"]):
        lines.append(f"| {name} | " + " | ".join(_entry(found.get((name, b))) for b in budgets) + " |")
    return "\n".join(lines) + "\n"


def _entry(row: dict[str, Any] | None) -> str:
    if row is None:
        return " | "
    fewer = "" if row["evaluations"] == row["budget"] else f" ({row['evaluations']})"
    apart = "" if row["sampler"] == DEFAULT else f"{row['difference']:+.2f} ± {row['difference_error']:.2f}"
    return f"{row['distance']:.2f} ± {row['error']:.2f}{fewer} | {apart}"


def _write(
    folder: Path, result: dict[str, Any], cells: Mapping[tuple[str, int, int], Cell], settings: FewSteps
) -> None:
    write_atomic(folder / "table.md", table(result).encode())
    write_atomic(folder / "result.json", (json.dumps(result, indent=1) + "\n").encode())
    if not result["rows"]:
        return
    few_step_plots.distances(folder / "distances.png", result["rows"])
    seed, blank = settings.seeds[0], torch.ones(SHOWN, *SHAPE)
    budgets = [b for b in settings.budgets if any((n, b, seed) in cells for n in SAMPLERS)]
    shown = {
        name: [cells[name, b, seed].images if (name, b, seed) in cells else blank for b in budgets]
        for name in dict.fromkeys(r["sampler"] for r in result["rows"])
    }
    few_step_plots.side_by_side(folder / "digits.png", shown, [f"{b} evaluations" for b in budgets])


def main() -> None:
    """Run with the default settings, or the quick ones, and print the table."""
    parser = argparse.ArgumentParser(description="Compare samplers of a few steps on a published model of MNIST.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/few_steps"))
    parser.add_argument("--quick", action="store_true", help="tiny sets, for a look at whether everything works")
    parser.add_argument("--collect", action="store_true", help="draw nothing; put together what is there")
    told = parser.parse_args()
    torch.set_num_threads(1)
    settings = quick() if told.quick else FewSteps()
    print(table(collect(settings, told.folder) if told.collect else run(settings, told.folder)))


if __name__ == "__main__":
    main()
