"""Score models by the command line: killed and resumed, shared by processes, used and measured."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dxdt.lab.cli import main
from dxdt.lab.runs.config import from_plain, read_config, to_plain
from dxdt.lab.runs.files import load_checkpoint
from dxdt.lab.training.averaging import PowerFunction
from dxdt.lab.training.score_model import load_model, train_score
from dxdt.lab.training.settings import EdmLoss, Preconditioned, Score, SmallUNet, Training, Ve

TINY = Score(
    conditional=True,
    net=SmallUNet(channels=4, multipliers=(1, 2), attention=(1,), dropout=0.1),
    training=Training(steps=40, batch=8, accumulate=2, save_every=8, log_every=1, warmup=3),
    pictures=0,
)
CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from dxdt.lab.runs.config import from_plain, read_config
from dxdt.lab.training.score_model import train_score
from dxdt.lab.training.settings import Score
train_score(from_plain(Score, read_config(Path(sys.argv[1]))), Path(sys.argv[2]), quiet=True)
"""


def losses(folder: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"]) for r in rows if r["series"] == "score"]


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model, trained without interruption."""
    folder = tmp_path_factory.mktemp("score") / "run"
    train_score(TINY, folder, quiet=True)
    return folder


def test_a_killed_run_goes_on_with_the_same_losses(trained: Path, tmp_path: Path):
    config, folder = tmp_path / "c.json", tmp_path / "run"
    config.write_text(json.dumps(to_plain(TINY)))
    command = [sys.executable, "-c", CHILD, str(config), str(folder)]
    child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    begun = time.monotonic()
    while lines(folder) < 20 and child.poll() is None and time.monotonic() - begun < 120:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert 20 <= lines(folder) < 40
    model = train_score(TINY, folder, quiet=True)
    assert losses(folder) == losses(trained)
    whole = load_model(trained).denoiser.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in model.denoiser.state_dict().items())


def test_an_interrupt_writes_a_checkpoint_and_says_how_to_go_on(trained: Path, tmp_path: Path):
    config, folder = tmp_path / "c.json", tmp_path / "run"
    config.write_text(json.dumps(to_plain(TINY)))
    command = [sys.executable, "-m", "dxdt", "train", "score", "--config", str(config), "--out", str(folder), "--quiet"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    begun = time.monotonic()
    while lines(folder) < 10 and child.poll() is None and time.monotonic() - begun < 120:
        time.sleep(0.002)
    child.send_signal(signal.SIGINT)
    said = child.communicate()[1]
    assert child.returncode == 130 and "Traceback" not in said
    step = int(re.search(r"stopped at step (\d+) of 40, and saved in .*; the same command goes on", said)[1])
    assert load_checkpoint(folder / "checkpoints" / "score.safetensors")[1]["step"] == step == lines(folder)
    main([*command[3:]])
    assert losses(folder) == losses(trained)


def test_a_run_grows(tmp_path: Path):
    """Twenty steps and then twenty more are forty, where the learning rate does not know the end."""
    settings = replace(TINY, training=replace(TINY.training, floor=1.0))
    train_score(settings, tmp_path / "whole", quiet=True)
    half = replace(settings, training=replace(settings.training, steps=20))
    train_score(half, tmp_path / "run", quiet=True)
    main(["train", "score", "--out", str(tmp_path / "run"), "--training.steps", "40", "--quiet"])
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    main(["train", "score", "--out", str(tmp_path / "run"), "--pictures", "2", "--picture-steps", "2", "--quiet"])
    assert [p.name for p in (tmp_path / "run" / "pictures").iterdir()] == ["0000040.png"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    changes = [{k: v for k, v in row.items() if k != "series"} for row in rows if row["series"] == "settings"]
    assert changes == [{"training.steps": [20, 40]}, {"picture_steps": [40, 2], "pictures": [0, 2]}]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--low", "0"], "another low"),
        (["--net.channels", "8"], "another net.channels"),
        (["process:ve"], "another process"),
        (["--training.seed", "3"], "another training.seed"),
        (["--training.steps", "10"], "has taken 40 steps, more than the 10 asked"),
    ],
)
def test_what_a_run_is_does_not_change(trained: Path, flags, words, capsys):
    before = (trained / "config.json").read_bytes()
    with pytest.raises(SystemExit):
        main(["train", "score", "--out", str(trained), "--quiet", *flags])
    assert words in " ".join(capsys.readouterr().err.split())
    assert (trained / "config.json").read_bytes() == before


def test_a_run_begins_with_a_trained_model(trained: Path, tmp_path: Path, capsys):
    """Its first loss is that of the model's end, and not that of untrained weights."""
    out = tmp_path / "tuned"
    main(["train", "score", "--from", str(trained), "--out", str(out), "--training.lr", "1e-4", "--quiet"])
    found = from_plain(Score, json.loads((out / "config.json").read_text()))
    assert found == replace(TINY, training=replace(TINY.training, lr=1e-4))
    first, last = (np.mean([v for _, v in losses(f)[:10]]) for f in (out, trained))
    assert first < 0.8 * last
    for args, words in (
        (["--from", str(tmp_path / "nothing")], "there is no model"),
        (["--from", str(trained), "--net.channels", "8"], "has another network than is to be trained"),
    ):
        with pytest.raises(SystemExit):
            main(["train", "score", "--out", str(tmp_path / "other"), "--quiet", "--fresh", *args])
        assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_two_processes_make_the_losses_of_one(tmp_path: Path):
    settings = replace(TINY, net=replace(TINY.net, dropout=0.0))
    train_score(settings, tmp_path / "one", quiet=True)
    config, script = tmp_path / "c.json", tmp_path / "child.py"
    config.write_text(json.dumps(to_plain(settings)))
    script.write_text(CHILD)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*launch, str(script), str(config), str(tmp_path / "two")],
        check=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [s for s, _ in one] == [s for s, _ in two]
    assert one != two  # they did share: sums of halves differ from sums of wholes in their last bits
    assert np.allclose([v for _, v in one], [v for _, v in two], rtol=1e-4)


def test_a_run_is_whole(trained: Path):
    names = {p.name for p in trained.iterdir()}
    assert {"config.json", "metrics.jsonl", "model.safetensors", "checkpoints", "losses.png", "tensorboard"} <= names
    assert [p.name for p in (trained / "tensorboard").iterdir() if p.name.startswith("events")]
    assert from_plain(Score, json.loads((trained / "config.json").read_text())) == TINY
    model = load_model(trained)
    assert (model.shape, model.step, model.classes) == ((1, 8, 8), 40, tuple("0123456789"))
    with pytest.raises(ValueError, match="no class 10"):
        model.of_class(torch.tensor([10]))


def test_samples_are_files(trained: Path, tmp_path: Path):
    for solver in ("Exponential", "heun", "EulerMaruyama"):
        out = tmp_path / solver
        tau = "1" if solver == "EulerMaruyama" else "0"
        main(["sample", str(trained), "--out", str(out), "--count", "12", "--how.steps", "4", "--how.batch", "10",
              "--how.solver", solver, "--how.tau", tau, "--quiet"])  # fmt: skip
        found = np.load(out.with_name(f"{solver}.npz"))
        assert found["images"].shape == (12, 1, 8, 8)
        assert found["images"].dtype == np.uint8
        assert found["labels"].tolist() == [*range(10), 0, 1]
        assert Image.open(out.with_name(f"{solver}.png")).size[0] > 400
        main(["sample", str(trained), "--out", str(tmp_path / "whole"), "--count", "12", "--how.steps", "4",
              "--how.solver", solver, "--how.tau", tau, "--quiet"])  # fmt: skip
        whole = np.load(tmp_path / "whole.npz")["images"].astype(int)
        assert np.abs(whole - found["images"]).max() <= 1  # of 255, for the last bits of the network


def test_measures_are_files(trained: Path, tmp_path: Path):
    out = tmp_path / "bits.json"
    main(["likelihood", str(trained), "--count", "6", "--tol", "1e-2", "--out", str(out)])
    bits = json.loads(out.read_text())
    assert 0 < bits["mean"] < 30 and bits["standard_error"] > 0 and bits["images"] == 6
    main(["sample", str(trained), "--out", str(tmp_path / "s"), "--count", "30", "--how.steps", "3", "--quiet"])
    for source in (str(tmp_path / "s.npz"), str(trained)):
        main(["evaluate", source, "--reference", "digits", "--features", "torch.nn:Flatten", "--count", "30",
              "--how.steps", "3", "--resamples", "3", "--out", str(out), "--quiet"])  # fmt: skip
        found = json.loads(out.read_text())
        assert found["value"] > 0 and found["standard_error"] > 0
        assert (found["samples"], found["reference"]) == (30, 180)


def test_runs_are_listed(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["runs", str(trained.parent)])
    assert re.search(r"digits\s+40\s+40", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main(["runs", str(tmp_path)])


@pytest.mark.parametrize("ending", ["yaml", "toml", "json"])
def test_settings_come_from_files_and_flags(tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]):
    text = {
        "yaml": "data: digits\nprocess: {kind: Ve, high: 9}\ntraining: {steps: 2, lr: 1e-3}\nobjective: EdmLoss\n",
        "toml": 'data = "digits"\nobjective = "EdmLoss"\n[process]\nkind = "Ve"\nhigh = 9\n[training]\nsteps = 2\n'
        "lr = 1e-3\n",
        "json": '{"data": "digits", "process": {"kind": "Ve", "high": 9}, "training": {"steps": 2, "lr": 1e-3}, '
        '"objective": "EdmLoss"}',
    }[ending]
    path, out = tmp_path / f"c.{ending}", tmp_path / "run"
    path.write_text(text)
    main(["train", "score", "--config", str(path), "--out", str(out), "--training.batch", "4", "--net.channels", "4",
          "--pictures", "2", "--picture-steps", "2", "--quiet", "answer:preconditioned"])  # fmt: skip
    found = from_plain(Score, json.loads((out / "config.json").read_text()))
    assert found.process == Ve(high=9.0) and found.objective == EdmLoss() and found.answer == Preconditioned()
    assert (found.training.steps, found.training.batch, found.training.lr) == (2, 4, 1e-3)
    assert [p.name for p in (out / "pictures").iterdir()] == ["0000002.png"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("chanels: 3", "there is no setting chanels"),
        ("net: {chanels: 3}", "did you mean channels"),
        ("process: {kind: Vpp}", "did you mean Vp"),
        ("process: Edn", "did you mean Edm"),
        ("training: {steps: many}", "Training.steps: 'many'"),
        ("training: {precision: fp8}", "Training.precision"),
        ("training: 3", "no table of settings"),
        ("training: {steps: 0}", "do nothing"),
        ("- a\n- b", "no table of settings"),
        ("a: [", "cannot be read as settings"),
        ("data: digits\ntraining: {batch: 9, accumulate: 2}", "does not divide"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["train", "score", "--config", str(path), "--out", str(tmp_path / "run"), "--quiet"])
    assert ended.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert words in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "scores"], "known is score"),
        (["train", "score", "--config", "nothing"], "recipes cifar10, mnist"),
        (["train", "score", "--config"], "names no file"),
        (["sample", "nowhere"], "nowhere"),
        (["likelihood", "nowhere"], "nowhere"),
        (["evaluate", "x.npz", "--reference", "digits", "--features", "nothing"], "no feature network"),
    ],
)
def test_wrong_commands_are_one_sentence(args: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 1
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_wrong_solver_or_class_is_named(trained: Path, capsys: pytest.CaptureFixture[str]):
    for flags, words in (
        (["--how.solver", "hein"], "did you mean Heun"),
        (["--how.grid", "karas"], "did you mean Karras"),
        (["--how.solver", "heun", "--how.order", "3"], "one order only"),
        (["--how.label", "12"], "no class 12"),
    ):
        with pytest.raises(SystemExit):
            main(["sample", str(trained), "--how.steps", "2", "--count", "2", "--quiet", *flags])
        assert words in " ".join(capsys.readouterr().err.split())


def test_recipes_are_settings():
    folder = Path(sys.modules["dxdt.lab.cli.settings"].RECIPES)
    assert {p.stem for p in folder.glob("*.yaml")} == {"mnist", "cifar10"}
    for path in folder.glob("*.yaml"):
        settings = from_plain(Score, read_config(path))
        assert from_plain(Score, json.loads(json.dumps(to_plain(settings)))) == settings


def test_several_averages_are_kept_and_resumed(tmp_path: Path):
    training = replace(TINY.training, steps=4, save_every=2, average=PowerFunction((0.1, 0.2)))
    settings = replace(TINY, training=training)
    model = train_score(settings, tmp_path / "run", quiet=True)
    again = train_score(settings, tmp_path / "run", quiet=True)
    main(["average", str(tmp_path / "run"), "--width", "0.1"])
    main(["average", str(tmp_path / "run"), "--width", "0.15"])
    same, other = (load_model(tmp_path / "run" / f"average-{w}.safetensors") for w in ("0.1", "0.15"))
    four = (m.denoiser.state_dict().values() for m in (model, again, same, other))
    for a, b, c, d in zip(*four, strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, c, atol=1e-6)
        assert a.numel() < 9 or not torch.equal(c, d)


def test_a_run_without_snapshots_has_no_other_averages(trained: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["average", str(trained), "--width", "0.1"])
    assert "kept no snapshots" in " ".join(capsys.readouterr().err.split())


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "run"
    settings = replace(TINY, training=replace(TINY.training, steps=16))
    written, real = 0, os.fsync

    def full(handle: int) -> None:
        nonlocal written
        written += 1
        if written > 3:  # settings, the first checkpoint and its model
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        train_score(settings, folder, quiet=True)
    monkeypatch.undo()
    assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp")]
    train_score(settings, folder, quiet=True)
    assert [s for s, _ in losses(folder)] == list(range(1, 17))


SHARDED = """
import copy, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from dxdt.lab.training.averaging import WarmUp
from dxdt.lab.training.ema import Averages
torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
plain = nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 3))
template, sharded = copy.deepcopy(plain), copy.deepcopy(plain)
fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
assert isinstance(next(sharded.parameters()), DTensor)
a, b = Averages(plain, WarmUp()), Averages(sharded, WarmUp())
x = torch.randn(4, 5)
for step in range(1, 4):
    for net, averages in ((plain, a), (sharded, b)):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1, fused=True)
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        averages.update(net, step, 4)
found = b.fill(template, sharded)
for name, p in found.named_parameters():
    assert torch.allclose(p, a.tensors[0][name], atol=1e-6)
b.restore(0, {n: torch.ones_like(p) for n, p in found.named_parameters()})
assert all(bool((v.full_tensor() == 1).all()) for v in b.tensors[0].values())
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_averages_of_sharded_weights_are_those_of_whole_ones(tmp_path: Path):
    script = tmp_path / "child.py"
    script.write_text(SHARDED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run(launch, check=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_precision_changes_a_loss_a_little(tmp_path: Path, precision: str, trained: Path):
    settings = replace(TINY, training=replace(TINY.training, steps=6, precision=precision))
    train_score(settings, tmp_path / "run", quiet=True)
    found, exact = losses(tmp_path / "run"), losses(trained)
    assert np.allclose([v for _, v in found[:3]], [v for _, v in exact[:3]], rtol=3e-2)
    assert (found[0] == exact[0]) == (precision == "no")


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_training_on_a_gpu_in_half_precision(tmp_path: Path, data: Path, compiled: bool):
    """A net of 15.6 million weights learns the 10,000 CIFAR-10 images for 400 steps, and its samples are measured."""
    net = SmallUNet(channels=96, multipliers=(1, 2, 2), blocks=2, attention=(1,), heads=4)
    training = Training(steps=400, batch=128, lr=5e-4, warmup=50, precision="bf16", compile=compiled, save_every=200)
    settings = Score(data="cifar10", conditional=True, net=net, training=training, pictures=20)
    train_score(settings, tmp_path / "run", quiet=True)
    assert np.mean([v for _, v in losses(tmp_path / "run")[-10:]]) < 0.12
    main(["sample", str(tmp_path / "run"), "--out", str(tmp_path / "grid"), "--count", "60", "--quiet"])
    main(["evaluate", str(tmp_path / "run"), "--reference", "cifar10", "--features", "resnet20", "--count", "2000",
          "--out", str(tmp_path / "distance.json"), "--quiet"])  # fmt: skip
    found = json.loads((tmp_path / "distance.json").read_text())
    print(f"feature distance {found['value']:.2f} ± {found['standard_error']:.2f}, 2,000 samples, resnet20")
    assert math.isfinite(found["value"]) and (tmp_path / "grid.png").exists()
