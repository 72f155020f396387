"""The benchmark of samplers runs, and its libraries agree; nothing here depends on how long anything takes."""

import json
from pathlib import Path

import pytest

from benchmarks.sample import bench_sample


def test_samplers_agree_and_are_recorded(tmp_path: Path):
    lines = bench_sample(part=("steps",), steps=4, repeats=1, out=tmp_path)
    assert {line.work for line in lines} == {"solve", "step"}
    assert all(line.error < 1e-5 for line in lines if "order 3" not in line.peer)
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == len(lines)
    assert (tmp_path / "table.txt").read_text()


def test_likelihoods_agree():
    pytest.importorskip("scipy")
    lines = {line.peer: line for line in bench_sample(part=("likelihood",), repeats=1, tol=1e-2)}
    assert max(line.error for line in lines.values()) < 0.05
    assert lines["dxdt, Dopri5"].steps < lines["score_sde's loop"].steps
