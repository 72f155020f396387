"""The benchmarks of noise run, compare and record; nothing here depends on how long anything takes."""

import json

import pytest
import torch

from benchmarks import brownian as queries
from benchmarks import sde as solves
from benchmarks.brownian import bench_brownian


@pytest.fixture
def interpreted(monkeypatch):
    """No code is generated: only that the runs agree is looked at."""
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    monkeypatch.setattr(queries, "_SOURCES", {n: s for n, s in queries._SOURCES.items() if "compiled" not in n})


def test_queries_are_recorded(interpreted, tmp_path):
    lines = bench_brownian(size=("8x3",), queries=20, repeats=1, out=tmp_path)
    assert {x.peer for x in lines} >= {"dxdt Increments", "dxdt Brownian"}
    assert all(x.steps == 20 and x.error < 0.5 for x in lines)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["machine"]["torch"] == torch.__version__ and len(record["rows"]) == len(lines)
    assert (tmp_path / "table.txt").stat().st_size and (tmp_path / "times.png").stat().st_size


@pytest.mark.parametrize("problem", ["gbm", "neural"])
def test_libraries_solve_the_same_equation(problem):
    """Means of the ends agree within what the number of paths allows."""
    case = solves._PROBLEMS[problem]
    field, y0 = case.make()
    with torch.no_grad():
        ends = {"dxdt": solves._ours(case, field, y0, False)}
        if solves.missing("torchsde", "torchsde") is None:
            ends["torchsde"] = solves._torchsde(case, field, y0)
    for end in ends.values():
        assert solves._error(problem, case, end.double().numpy()) < 0.15
