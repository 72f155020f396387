"""The benchmark runs, compares and records; nothing here depends on how long anything takes."""

import json

import numpy as np
import pytest
import torch

from dxdt.lab.bench import bench
from dxdt.lab.bench.measure import count_operations, time_together
from dxdt.lab.bench.peers import PEERS
from dxdt.lab.bench.problems import PROBLEMS
from dxdt.lab.bench.scaling import scaling


def test_a_run_writes_what_it_found(tmp_path):
    rows = bench(
        problem=("lotka",),
        batch=(2,),
        peers=(),
        repeats=1,
        floor=False,
        profile=True,
        out=tmp_path,
    )
    assert [r.work for r in rows] == ["forward", "forward+backward"]
    assert all(r.error < 1e-3 and r.ratio == 1 and r.equal for r in rows)
    assert rows[0].counts is not None and rows[0].counts.operations > rows[0].steps
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["machine"]["torch"] == torch.__version__
    assert record["rows"][0]["steps"] == rows[0].steps
    assert (tmp_path / "table.txt").stat().st_size and (tmp_path / "times.png").stat().st_size


def test_a_missing_peer_costs_one_line(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jax" else name)
    object.__setattr__(peer := PEERS["diffrax"], "package", "jax")
    try:
        bench(problem=("lotka",), batch=(1,), peers=("diffrax",), repeats=1, floor=False)
    finally:
        object.__setattr__(peer, "package", "diffrax")
    assert capsys.readouterr().out.count("not installed") == 1


def test_an_unknown_peer_is_an_error():
    with pytest.raises(ValueError, match="unknown"):
        bench(peers=("scipy",))


@pytest.mark.parametrize("peer", ["torchdiffeq", "torchode", "diffrax"])
def test_peers_solve_the_same_problems(peer):
    pytest.importorskip(peer)
    problem = PROBLEMS["lotka"]
    ours, theirs = PEERS["dxdt"].answer(problem, 2), PEERS[peer].answer(problem, 2)
    assert np.abs(ours.y - theirs.y).max() < 0.01
    assert 0.5 < ours.steps / theirs.steps < 2


def test_repetitions_are_taken_in_turns():
    order = []
    runs = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = time_together(runs, repeats=2, least=0.0)
    assert "".join(order[6:]) == "abba"
    assert times["a"].low <= times["a"].median <= times["a"].high


def test_operations_and_host_reads_are_counted():
    x = torch.ones(3)
    counts = count_operations(lambda: float((x + 1).sum()))
    assert counts.operations == 3 and counts.syncs == 1


def test_curves_are_recorded(tmp_path):
    points = scaling(axes=("steps",), peers=("dxdt",), repeats=1, out=tmp_path)
    steps = [p.steps for p in points]
    assert steps == sorted(steps) and len(set(steps)) == len(steps)
    assert len(json.loads((tmp_path / "scaling.json").read_text())) == len(points)
    assert (tmp_path / "scaling.png").stat().st_size
