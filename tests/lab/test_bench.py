"""The benchmark runs, compares and records; nothing here depends on how long anything takes."""

import json

import numpy as np
import pytest
import torch

from benchmarks import ensemble
from benchmarks.command import BENCHES, bench_command
from benchmarks.ensemble import bench_ensemble
from benchmarks.measure import count_operations, time_together
from benchmarks.peers import PEERS
from benchmarks.problems import PROBLEMS
from benchmarks.scaling import scaling
from benchmarks.solve import bench


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
    counts = count_operations(lambda: float((x + 1).add_(1)[:].sum()))
    assert counts.operations == 5 and counts.syncs == 1
    assert counts.allocations == 2 and counts.allocated == x.nbytes + 4


def test_curves_are_recorded_and_go_on(tmp_path, capsys):
    settings = dict(axes=("steps",), peers=("dxdt",), repeats=1, out=tmp_path)
    some = scaling(quick=True, **settings)
    steps = [p.value for p in some]
    assert steps == sorted(steps) and len(set(steps)) == len(steps) > 1
    record = json.loads((tmp_path / "scaling.json").read_text())
    assert len(record["points"]) == len(some) and record["machine"]["torch"] == torch.__version__
    assert (tmp_path / "scaling.png").stat().st_size and (tmp_path / "table.txt").stat().st_size
    again = scaling(**settings)
    assert set(some) < set(again)
    assert "3 points are taken from" in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(ValueError, match="was measured with"):
        scaling(**{**settings, "repeats": 2})


@pytest.mark.parametrize("peers", [(), pytest.param(("torchdiffeq", "torchode", "diffrax"), marks=pytest.mark.slow)])
def test_libraries_solve_the_same_ensemble(peers, monkeypatch, tmp_path):
    if not peers:
        monkeypatch.delitem(ensemble._PEERS, "dxdt, compiled")
    lines = bench_ensemble(number=5, steps=100, peers=peers, repeats=1, out=tmp_path)
    assert {x.work for x in lines} == {"fixed", "adaptive"}
    assert all(x.error < 1e-3 and 5 < x.steps <= 101 for x in lines)
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == len(lines)


def test_the_command_names_all_benchmarks(capsys):
    with pytest.raises(SystemExit):
        bench_command(["--help"])
    told = capsys.readouterr().out
    assert all(name in told for name in BENCHES)
    with pytest.raises(SystemExit):
        bench_command(["--repeats", "many"])
    assert "Error parsing --repeats" in "".join(capsys.readouterr())


@pytest.mark.gpu
@pytest.mark.parametrize("problem", ["mlp", "fast", "lotka", "small", "wide"])
def test_solves_run_on_a_gpu(problem):
    rows = bench(problem=(problem,), batch=(3,), repeats=1, device="cuda", compile=True, profile=True)
    assert {"dxdt", "dxdt-compiled"} <= {r.peer for r in rows}
    assert all(r.error < 1e-2 for r in rows)


@pytest.mark.gpu
def test_ensembles_run_on_a_gpu():
    lines = bench_ensemble(number=64, steps=100, repeats=1, device="cuda")
    assert {(x.work, x.peer) for x in lines} >= {(w, p) for w in ("fixed", "adaptive") for p in ("dxdt", "torchode")}
    assert all(x.error < 1e-4 for x in lines)
