"""Our own checkpoints: what is written comes back, and what does not belong together is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from dxdt import interop
from dxdt.diffusion import (
    EDM,
    VE,
    VP,
    AngularVelocity,
    Cosine,
    Data,
    Denoiser,
    EDMPreconditioning,
    Index,
    Linear,
    LogScale,
    LogSigma,
    Noise,
    Preconditioned,
    Process,
    Score,
    SubVP,
    Table,
    VPPreconditioning,
    gaussian_oracle,
    linear_betas,
    log_snr,
    noise_to_signal,
)
from dxdt.interop.description import describe, restore
from dxdt.nn import MagnitudeUNet, ScoreUNet, UNet, adm, ddpm, ddpmpp, edm2, ncsnpp
from processes import PROCESSES


def net() -> ScoreUNet:
    made = ScoreUNet(ddpmpp(1, width=8, multipliers=(1, 2), blocks=1, labels=3))
    for p in made.parameters():
        nn.init.normal_(p, std=0.2)
    return made.eval()


def header_of(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["dxdt"])


def rewritten(path: Path, change: dict[str, Any]) -> None:
    """Write the file again with entries of its description replaced."""
    tensors = safetensors.torch.load_file(path)
    said = header_of(path) | change
    safetensors.torch.save_file(tensors, path, metadata={"dxdt": json.dumps(said)})


WHOLE = [
    Denoiser(net(), VP(), Noise(), Index()),
    Denoiser(net(), SubVP(Linear(0.2, 7.0)), AngularVelocity(), log_snr),
    Denoiser(net(), VE(0.02, 348.0), Score(), noise_to_signal),
    Denoiser(net(), VP(Table.from_betas(linear_betas())), Data(), Index.levels(1000)),
    Denoiser(net(), VP(Table.from_betas(linear_betas(50), LogSigma())), Noise(), LogScale(0.5)),
    Denoiser(UNet(1, channels=8, blocks=1), VP(Cosine()), Noise()),
    Preconditioned(net(), EDM(), EDMPreconditioning(0.3)),
    Preconditioned(net(), VP(), VPPreconditioning(Linear(0.1, 20.0), 100)),
    Preconditioned(
        MagnitudeUNet(edm2(1, width=8, multipliers=(1, 8), blocks=1, attention=(1,), labels=3)),
        EDM(),
        EDMPreconditioning(),
    ),
    Denoiser(
        interop.MeanPart(ScoreUNet(adm(1, width=8, multipliers=(1, 2), blocks=1, attention=(1,), out_channels=2))), VP()
    ),
]


@pytest.mark.parametrize("which", range(len(WHOLE)))
def test_a_denoiser_comes_back_as_it_was(which: int, tmp_path: Path):
    denoiser = WHOLE[which].eval()
    path = tmp_path / "a.safetensors"
    interop.save(path, denoiser, about={"note": "three words here"})
    again = interop.load(path)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        assert torch.equal(again(x, t).data, denoiser(x, t).data)
        assert torch.equal(again(x, t).noise, denoiser(x, t).noise)
    assert type(again) is type(denoiser)
    assert header_of(path)["about"] == {"note": "three words here"}


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_every_process_has_a_description(process: Process):
    if not type(process).__module__.startswith("dxdt."):
        with pytest.raises(ValueError, match="has no description"):
            describe(process)
        return
    again = restore(json.loads(json.dumps(describe(process))), "here")
    t = torch.linspace(process.t0, process.t1, 7, dtype=torch.float64)
    assert torch.equal(again.a(t), process.a(t))
    assert torch.equal(again.c(t), process.c(t))


@pytest.mark.parametrize("architecture", [ncsnpp(), ddpm(), adm(), ddpmpp(labels=3), edm2()])
def test_every_architecture_has_a_description(architecture: Any):
    assert restore(json.loads(json.dumps(describe(architecture))), "here") == architecture


@pytest.fixture
def path(tmp_path: Path) -> Path:
    interop.save(tmp_path / "a.safetensors", WHOLE[0])
    return tmp_path / "a.safetensors"


def test_the_process_may_be_expected(path: Path):
    assert interop.load(path, process=VP()).process == VP()
    for other in (SubVP(), VP(Linear(0.1, 19.0)), VE()):
        with pytest.raises(ValueError, match="trained on"):
            interop.load(path, process=other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"process": describe(VP(Linear(0.1, 12.0)))}, "has signal"),
        ({"process": {"type": "VPP"}}, "did you mean VP"),
        ({"process": {"type": "VP", "shedule": None}}, "did you mean schedule"),
        ({"process": describe(Noise())}, "is none"),
        ({"process": {"type": "system", "command": "true"}}, "not known"),
        ({"clock": {"function": "eval"}}, "not known"),
        ({"net": {"kind": "Other"}}, "Other"),
        ({"net": {"kind": "ScoreUNet", "architecture": describe(ddpmpp(1, width=16))}}, "do not fit the network"),
        ({"net": {"kind": "ScoreUNet", "architecture": describe(Noise())}}, "is none"),
        ({"net": {}}, "damaged"),
        ({"process": {"type": "VP", "schedule": "linear"}}, "damaged"),
        ({"format": 99}, "format 99"),
    ],
)
def test_a_changed_description_is_refused(path: Path, change: dict[str, Any], words: str):
    rewritten(path, change)
    with pytest.raises(ValueError, match=words) as caught:
        interop.load(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_or_foreign_file_is_a_clear_error(path: Path):
    content = path.read_bytes()
    for share in (0.0, 0.1, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            interop.load(path)
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="no description"):
        interop.load(path)
    with pytest.raises(FileNotFoundError):
        interop.load(path.with_name("b.safetensors"))


def test_what_has_no_description_is_not_written(tmp_path: Path):
    target = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="Linear cannot be described"):
        interop.save(target, Denoiser(nn.Linear(2, 2), VP()))
    with pytest.raises(ValueError, match="cannot be described"):
        interop.save(target, Denoiser(UNet(1, channels=8, embedding=nn.Identity(), features=1), VP()))
    with pytest.raises(ValueError, match="has no description"):
        interop.save(target, Denoiser(net(), VP(), Noise(), lambda process, t: t))
    assert not target.exists()


def test_a_full_disk_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch):
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        interop.save(path, WHOLE[2])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_package_is_one_helpful_sentence(path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"pip install 'dxdt\[interop\]'"):
        interop.load(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("google/ddpm-cifar10-32", r'snapshot_download\("google/ddpm-cifar10-32"\)'),
        ("https://huggingface.co/google/ddpm", r'snapshot_download\("google/ddpm"\)'),
        ("mnist_ddpm", "a name of the command line"),
        ("nowhere.pth", "nowhere.pth does not exist; check the name"),
        ("some/nowhere.pth", "does not exist; check the name"),
    ],
)
def test_a_name_that_leads_nowhere_says_where_it_may_lead(name, words):
    with pytest.raises(FileNotFoundError, match=words):
        interop.load(name)


def test_the_folder_of_a_run_is_opened(tmp_path):
    denoiser = Denoiser(UNet(1, channels=4, multipliers=(1, 2), blocks=1, attention=()), VP())
    interop.save(tmp_path / "model.safetensors", denoiser)
    (tmp_path / "config.json").write_text("{}")
    found, x, t = interop.load(tmp_path), torch.randn(2, 1, 4, 4), torch.tensor([0.2, 0.8], dtype=torch.float64)
    assert torch.equal(found(x, t).data, denoiser(x, t).data)


@pytest.mark.parametrize("what", [torch.nn.Linear(2, 2), gaussian_oracle(VP(), torch.zeros(2), torch.tensor(1.0))])
def test_what_cannot_be_written_says_so(what, tmp_path):
    with pytest.raises(ValueError, match=r"save: a \w+ is not written; give a Denoiser"):
        interop.save(tmp_path / "x.safetensors", what)
    assert not (tmp_path / "x.safetensors").exists()
