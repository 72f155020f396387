"""The laboratory: nothing half-written, training resumes exactly, measures measure, the demo runs."""

import io
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import dxdt
from dxdt.diffeq.progress import TextProgress
from dxdt.lab.cli import COMMANDS, main
from dxdt.lab.data.batch_rng import Draws
from dxdt.lab.data.datasets import digits, measured_pendulum
from dxdt.lab.data.folder import data_folder
from dxdt.lab.demo.demonstration import Demo, quick, run_demo
from dxdt.lab.evaluation.metrics import Classifier, controls, novelty
from dxdt.lab.runs.bar import progress_bar
from dxdt.lab.runs.config import differences, from_plain, to_plain
from dxdt.lab.runs.files import load_checkpoint, save_checkpoint, write_atomic
from dxdt.lab.runs.run import Run
from dxdt.lab.training.averaging import Fixed
from dxdt.lab.training.settings import Training
from dxdt.lab.training.trainer import train
from dxdt.lab.training.trajectory import simulated_pendulum


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one quick demo."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    before = os.environ.pop("DXDT_DATA", None)
    try:
        run_demo(quick(), folder, quiet=True)
    finally:
        if before is not None:
            os.environ["DXDT_DATA"] = before
    return folder


def test_the_demo_leaves_a_whole_run(demo: Path):
    names = {p.name for p in demo.iterdir()}
    pictures = {"samples", "course", "classes", "nearest", "distances", "pendulum", "training", "overview"}
    pictures |= {"double_well", "double_well_fields", "few_steps", "convergence"}
    assert {f"{p}.png" for p in pictures} <= names
    assert {"config.json", "metrics.jsonl", "report.html", "checkpoints"} <= names
    rows = [json.loads(line) for line in (demo / "metrics.jsonl").read_text().splitlines()]
    bits = next(r for r in rows if r["series"] == "bits_per_dim")
    assert 0 < bits["mean"] < 100
    assert bits["standard_error"] > 0
    assert {r["set"] for r in rows if r["series"] == "novelty"} == {"flow ODE", "reverse SDE"}
    assert all(0 < r["p"] <= 1 for r in rows if r["series"] == "two_sample")


def test_the_report_stands_alone(demo: Path):
    page = (demo / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 11
    assert all(s.startswith("data:image/png;base64,") for s in sources)


def test_a_finished_demo_is_not_trained_again(demo: Path):
    before = (demo / "checkpoints" / "score.safetensors").stat().st_mtime_ns
    losses = Run(demo, quick()).read("score")
    assert len(losses) == 2
    assert (demo / "checkpoints" / "score.safetensors").stat().st_mtime_ns == before


def noisy_loss(model: nn.Linear, draws: Draws) -> torch.Tensor:
    x = draws.normal("x", (3,))
    return (nn.functional.dropout(model(x), 0.3) - x.sum(1, keepdim=True)).square().mean()


def fresh_model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


@dataclass
class Stop(Exception):
    at: int


def test_an_interrupted_training_goes_on_with_the_same_losses(tmp_path: Path):
    settings = Training(steps=60, save_every=20, warmup=5)
    straight = Run(tmp_path / "a", settings)
    want = train(fresh_model(), noisy_loss, settings, straight, "m", quiet=True)
    broken = Run(tmp_path / "b", settings)
    calls = 0

    def failing(model: nn.Linear, draws: Draws) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 53:
            raise Stop(calls)
        return noisy_loss(model, draws)

    with pytest.raises(Stop):
        train(fresh_model(), failing, settings, broken, "m", quiet=True)
    torch.manual_seed(12345)  # a new process has another global state
    torch.rand(7)
    found = train(nn.Linear(3, 1), noisy_loss, settings, broken, "m", quiet=True)
    assert torch.equal(found.weight, want.weight)
    losses = [[(r["step"], r["loss"]) for r in run.read("m")] for run in (straight, broken)]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == [10, 20, 30, 40, 50, 60]


def test_training_says_when_the_loss_breaks(tmp_path: Path):
    settings = Training(steps=20)
    with pytest.raises(FloatingPointError, match="learning rate"):
        train(
            fresh_model(),
            lambda m, g: noisy_loss(m, g) * float("nan"),
            settings,
            Run(tmp_path / "r", settings),
            "m",
            quiet=True,
        )


def test_a_longer_training_is_not_cut(tmp_path: Path):
    settings = Training(steps=10)
    run = Run(tmp_path / "r", settings)
    train(fresh_model(), noisy_loss, settings, run, "m", quiet=True)
    with pytest.raises(ValueError, match="more than the 5"):
        train(fresh_model(), noisy_loss, replace(settings, steps=5), run, "m", quiet=True)


def test_the_average_follows_the_weights(tmp_path: Path):
    settings = Training(steps=30, average=Fixed(0.0))
    model = fresh_model()
    average = train(model, noisy_loss, settings, Run(tmp_path / "r", settings), "m", quiet=True)
    assert torch.equal(average.weight, model.weight)
    assert not average.weight.requires_grad


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_come_back(tmp_path: Path):
    shared = torch.randn(3, 4)
    tensors = {"a": shared, "b": shared.T, "c": torch.tensor(3), "d": torch.empty(0)}
    save_checkpoint(tmp_path / "c.safetensors", tensors, {"step": 7, "name": "digits"})
    found, about = load_checkpoint(tmp_path / "c.safetensors")
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())
    assert about == {"step": 7, "name": "digits"}


@pytest.mark.parametrize("keep", [0, 5, 60, 130])
def test_a_truncated_checkpoint_is_an_error_with_a_remedy(tmp_path: Path, keep: int):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.randn(20)}, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"c\.safetensors is not a whole checkpoint"):
        load_checkpoint(path)


def test_settings_come_back_and_unknown_ones_are_named():
    settings = Demo(seed=3, score=Training(steps=5))
    plain = json.loads(json.dumps(to_plain(settings)))
    assert from_plain(Demo, plain) == settings
    with pytest.raises(ValueError, match="chanels; did you mean channels"):
        from_plain(Demo, {**plain, "chanels": 3})
    other = json.loads(json.dumps(to_plain(replace(settings, seed=4, score=Training(steps=6)))))
    assert differences(plain, other) == ["score.steps", "seed"]


def test_a_folder_with_another_run_is_refused(tmp_path: Path):
    Run(tmp_path / "r", Training(steps=5)).log("x", step=1)
    with pytest.raises(ValueError, match=r"another steps.*--fresh"):
        Run(tmp_path / "r", Training(steps=6))
    assert Run(tmp_path / "r", Training(steps=5)).read("x") == [{"series": "x", "step": 1}]
    assert Run(tmp_path / "r", Training(steps=6), fresh=True).read("x") == []


def test_a_folder_with_other_files_is_never_emptied(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    for fresh in (False, True):
        with pytest.raises(ValueError, match="no run of dxdt"):
            Run(tmp_path, Training(), fresh=fresh)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_half_a_line_of_metrics_is_no_loss(tmp_path: Path):
    run = Run(tmp_path / "r", Training())
    for step in (1, 2, 3):
        run.log("a", step=step)
        run.log("b", step=step)
    with run.metrics.open("a") as file:
        file.write('{"series": "a", "st')
    assert len(run.read("a")) == 3
    run.rewind("a", 2)
    assert [r["step"] for r in run.read("a")] == [1, 2]
    assert len(run.read("b")) == 3


def test_digits_are_split_without_overlap():
    data = digits(held_out=360)
    assert data.train.shape == (1437, 1, 8, 8)
    assert data.held_out.shape == (360, 1, 8, 8)
    assert torch.equal(data.held_out, digits(held_out=360).held_out)
    whole = torch.cat((data.train, data.held_out)).flatten(1)
    assert len(whole.unique(dim=0)) == len(whole)
    with pytest.raises(ValueError, match="held_out=0"):
        digits(held_out=0)


def test_a_classifier_of_real_digits_is_right_and_unsure_of_noise():
    data = digits()
    classifier = Classifier(data)
    assert classifier.accuracy > 0.97
    real = classifier.read(data.held_out)
    assert real.confidence > 0.7
    for images in controls(data.held_out).values():
        assert classifier.read(images).confidence < 0.5
    assert sum(real.histogram) == pytest.approx(1.0)


def test_copies_are_found_and_fresh_digits_are_not():
    data = digits()
    copies = novelty(data.train[:100] + 0.01, data.train, data.held_out)
    assert copies.ratio < 0.05
    assert copies.copies == 1.0
    assert torch.equal(copies.nearest, torch.arange(100))
    fair = novelty(data.held_out[:180], data.train, data.held_out[180:])
    assert 0.8 < fair.ratio < 1.25
    assert fair.copies < 0.1


def test_the_simulated_pendulum_loses_energy():
    data = simulated_pendulum(noise=0.0)
    angle, speed = data.ys.double().unbind(-1)
    energy = 0.5 * speed**2 - angle.cos()
    assert (energy.diff() < 1e-6).all()
    assert (data.ts.diff() > 0).all()


def test_the_data_folder_is_named_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DXDT_DATA", raising=False)
    assert data_folder() is None
    monkeypatch.setenv("DXDT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="correct or unset"):
        data_folder()
    monkeypatch.setenv("DXDT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="schmidt_lipson"):
        measured_pendulum(tmp_path)
    path = tmp_path / "dynamics" / "schmidt_lipson" / "real_pend_h_1.txt"
    write_atomic(path, b"1 2 3\n4 5 6\n")
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        measured_pendulum(tmp_path)


@pytest.mark.skipif(not os.environ.get("DXDT_DATA"), reason="DXDT_DATA names no data folder")
def test_the_measured_pendulum_is_one_trajectory():
    data = measured_pendulum(Path(os.environ["DXDT_DATA"]))
    assert data.ys.shape == (556, 2)
    assert (data.ts.diff() > 0).all()
    # the velocity is the slope of the angle
    slope = data.ys[:, 0].double().diff() / data.ts.diff()
    middle = (data.ys[1:, 1] + data.ys[:-1, 1]) / 2
    assert (slope - middle).square().mean().sqrt() < 0.1


def test_the_command_line_explains_itself(capsys: pytest.CaptureFixture[str]):
    main(["--help"])
    assert set(COMMANDS) <= set(capsys.readouterr().out.split())
    main(["--version"])
    assert capsys.readouterr().out == f"dxdt {dxdt.__version__}\n"
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--help"])
    assert ended.value.code == 0
    assert "interrupted run" in capsys.readouterr().out


def test_info_says_what_is_there_and_how_to_get_the_rest(capsys: pytest.CaptureFixture[str]):
    main(["info"])
    out = capsys.readouterr().out
    assert torch.__version__ in out
    assert "dxdt[" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["smaple"], "there is no command smaple: did you mean sample?"),
        (["train", "scroe"], "there is nothing to train called scroe"),
        (["sample", "nowhere"], "nowhere does not exist"),
    ],
)
def test_a_wrong_word_is_one_sentence(args, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_bars_write_no_carriage_returns_into_files(capsys):
    """Neither those of the laboratory nor that of a solve."""
    with progress_bar(10, "work", "piece") as bar:
        bar.update(5)
    stream = io.StringIO()
    meter = TextProgress(stream, every=0.0)
    for k in range(5):
        meter.update(k / 4)
    meter.close()
    assert capsys.readouterr().err == ""
    assert "\r" not in stream.getvalue() and stream.getvalue().count("\n") == 1 and "100.0 %" in stream.getvalue()


def test_the_report_fits_a_telephone_and_says_what_its_table_shows(demo: Path):
    page = (demo / "report.html").read_text()
    assert page.count('<div class="wide"><table>') == page.count("<table>") > 0
    pictures = re.findall(r'<div class="wide"><img src="data:[^"]*" width="(\d+)"', page)
    assert len(pictures) == page.count("<img ") > 0
    # 54 rem of 16 pixels with margins: no picture is shrunk, so all have letters of one size.
    assert max(map(int, pictures)) <= 864
    table = re.search(r"distance from the converged flow.*?</table>", page, re.S)[0]
    rows = {name: float(x) for name, x in re.findall(r"<tr><td>([^<]*)</td><td>([\d.]+)</td>", table)}
    nearest = re.search(r"Nearest to the converged digits is here at \d+ evaluations (.*?) \(", page + " (")[1]
    assert nearest.startswith(min(rows, key=lambda name: rows[name]).partition("(")[0])
    assert "standard errors" in page


def test_bad_input_is_one_sentence_and_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--quick", "--fresh", "--out", str(tmp_path)])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "no run of dxdt" in " ".join(said.split())
    assert (tmp_path / "thesis.tex").exists()
