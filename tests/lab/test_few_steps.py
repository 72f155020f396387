"""Samplers of a few steps: true counts, a denoiser asked right, runs that go on, differences that pair."""

import json
from pathlib import Path

import pytest
import torch

from dxdt.diffeq import Exponential, Heun, Inside
from dxdt.diffusion import DDIM, VP, Angle, Denoiser, LogSNR, Table, gaussian_oracle, sample
from dxdt.diffusion.processes.table import linear_betas
from dxdt.lab.data.folder import data_folder
from dxdt.lab.demo.few_step_page import Few
from dxdt.lab.demo.few_step_page import few_steps as page
from dxdt.lab.demo.few_step_samplers import Foreign, InPieces, Ours, steps_within
from experiments import few_steps

PROCESS = VP(Table.from_betas(linear_betas()))
ORACLE = gaussian_oracle(PROCESS, torch.tensor([0.3, -0.2]), torch.tensor([0.5, 0.1]))


def test_a_budget_is_filled_and_never_passed():
    assert steps_within(PROCESS, None, 0.0, 5) == 5
    assert steps_within(PROCESS, Heun(), 0.0, 5) == 3
    assert steps_within(PROCESS, Exponential(order=3), 0.0, 10) == 8
    single = Ours(Exponential(order=3, nodes=Inside()))
    assert single(ORACLE, (2, 2), 10, 0).evaluations == 10
    assert single(ORACLE, (2, 2), 9, 0).evaluations == 7
    with pytest.raises(ValueError, match="allow more"):
        steps_within(PROCESS, Heun(), 0.0, 0)


def test_schedulers_of_diffusers_draw_the_same_law():
    pytest.importorskip("diffusers", reason="diffusers is not installed (pip install dxdt[interop])")
    exact = sample(ORACLE, (50, 2), steps=400, solver=Exponential(order=3), grid=LogSNR(), seed=3)
    for name, order in (("DPMSolverMultistepScheduler", 2), ("UniPCMultistepScheduler", 2)):
        drawn = Foreign(name, order, linear_betas)(ORACLE, (50, 2), 100, 3)
        assert drawn.evaluations == 100
        assert (drawn.x - exact).abs().max() < 0.02


def test_few_steps_are_well_spent_by_default():
    x = {n: sample(ORACLE, (200, 2), steps=n, seed=1) for n in (5, 20, 200)}
    plain = sample(ORACLE, (200, 2), steps=5, solver=DDIM(), seed=1)
    apart = [(y - x[200]).square().mean().sqrt().item() for y in (x[20], x[5], plain)]
    assert apart[0] < 0.5 * apart[1]
    assert apart[1] < 0.5 * apart[2]
    assert Angle().before_data(PROCESS, 5) > 10 * PROCESS.t0


def test_a_network_in_pieces_answers_alike():
    net = torch.nn.Conv2d(1, 1, 3, padding=1)
    x, t = torch.randn(7, 1, 5, 5), torch.rand(7)

    def told(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return net(x) + t[:, None, None, None]

    assert torch.allclose(InPieces(told, 3, half=False)(x, t), told(x, t), atol=1e-6)
    brief = InPieces(told, 3, half=True)(x, t)
    assert brief.dtype == torch.float32
    assert torch.allclose(brief, told(x, t), atol=5e-2)


def test_the_page_shows_how_fast_samplers_converge(tmp_path: Path):
    denoiser = Denoiser(lambda x, t: 0.9 * x, VP())
    section = page(tmp_path, denoiser, (1, 8, 8), Few((5,), (5, 10), 2, 40), 0)
    assert section.table is not None and len(section.table.rows) == 4
    assert all(picture.path.exists() for picture in section.pictures)


@pytest.mark.skipif(data_folder() is None, reason="DXDT_DATA is not set")
def test_the_comparison_runs_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("diffusers", reason="diffusers is not installed (pip install dxdt[interop])")
    settings = few_steps.quick()
    result = few_steps.run(settings, tmp_path / "run")
    rows = {(r["sampler"], r["budget"]): r for r in result["rows"]}
    assert len(rows) == len(few_steps.SAMPLERS) * len(settings.budgets)
    assert all(r["evaluations"] <= r["budget"] and r["distance"] > 0 for r in rows.values())
    assert rows[few_steps.DEFAULT, 5]["difference"] == 0 == rows[few_steps.DEFAULT, 5]["difference_error"]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"table.md", "result.json", "distances.png", "digits.png", "cells"} <= names

    def never(*_: object) -> None:
        raise AssertionError("a finished run draws nothing")

    monkeypatch.setattr(few_steps, "Bench", never)
    again = few_steps.run(settings, tmp_path / "run")
    assert json.dumps(again) == json.dumps(result)
