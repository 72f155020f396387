"""Foreign checkpoints against what the authors' own code answered on the same weights.

The fingerprints were written by `make_fingerprints.py`, which runs that code outside the project.
"""

from pathlib import Path

import pytest
import torch

from dxdt import interop
from dxdt.diffusion import EDM, VE, VP, Denoiser, Preconditioned
from dxdt.interop import diffusers_config, edm, edm2, score_sde_shapes
from dxdt.nn import Architecture, MagnitudeUNet, ScoreUNet
from interop.foreign import answer, fingerprint, names, score_sde_content, write
from interop.weights import images, probe

# The wrappers of EDM for VP and VE form what they tell the network in float32, up to 5e-5 off.
ROUNDED = {"VPPrecond": 1e-4, "VEPrecond": 1e-4, "iDDPMPrecond": 2e-5}


def check_answers(name: str, folder: Path) -> None:
    said = fingerprint(name)
    # Shapes cannot tell discrete noise levels from VP.
    options = {"process": VE(0.01, 50.0)} if said.get("given") else {}
    denoiser = interop.load(write(said, folder), **options)
    got = answer(denoiser, said, images(tuple(said["ask"]["shape"])))
    for mine, theirs in zip(got, said["answer"], strict=True):
        wanted = torch.tensor(theirs, dtype=torch.float64)
        found = torch.tensor(probe(mine), dtype=torch.float64)
        size = wanted[-1].sqrt()
        error = ((found[:-1] - wanted[:-1]).abs() / size).max().item()
        assert error < ROUNDED.get(said.get("wrapper", ""), 1e-5)
        assert found[-1].item() == pytest.approx(wanted[-1].item(), rel=1e-4)


@pytest.mark.parametrize("name", names(asked=True, full=False))
def test_small_networks_answer_as_the_authors_do(name: str, tmp_path: Path):
    check_answers(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", names(asked=True, full=True))
def test_networks_of_published_size_answer_as_the_authors_do(name: str, tmp_path: Path):
    check_answers(name, tmp_path)


@pytest.mark.parametrize("name", names(asked=True))
def test_what_was_measured_is_within_the_promise(name: str):
    said = fingerprint(name)
    assert said["largest_difference_of_networks"] < 1e-5
    assert said["largest_difference"] < ROUNDED.get(said.get("wrapper", ""), 1e-5)


@pytest.mark.parametrize("name", names())
def test_every_tensor_has_a_place_of_its_shape(name: str):
    said = fingerprint(name)
    tensors = {k: torch.empty(v, device="meta") for k, v in said["keys"].items()}
    if said["format"] == "score_sde":
        found = {k.removeprefix("module."): v for k, v in tensors.items() if k != "module.sigmas"}
        shapes = score_sde_shapes.network_of(found, name)
        architecture, keys = shapes.architecture, shapes.keys
    elif said["wrapper" if "wrapper" in said else "format"] == "Precond":
        found = tensors
        options = edm2.options_of(said["options"], name)
        architecture = edm2.architecture_of(options)
        keys = edm2.key_map(architecture, options)
    elif said["format"] == "edm":
        found = {k: v for k, v in tensors.items() if not k.endswith("resample_filter")}
        options = edm.options_of(said["network"], said["options"], name)
        architecture = edm.architecture_of(said["network"], options)
        keys = edm.key_map(architecture, said["network"], options)
    else:
        found = tensors
        architecture = diffusers_config.architecture_of(said["config"])
        keys = diffusers_config.key_map(architecture)
    with torch.device("meta"):
        net = (ScoreUNet if isinstance(architecture, Architecture) else MagnitudeUNet)(architecture)
    interop.keys.matched(net.state_dict(), keys, found, where=name)
    assert set(keys) == set(net.state_dict())
    # Frequencies of Fourier features are frozen parameters in score SDE and diffusers, and a buffer here.
    ours = sum(p.numel() for p in net.parameters())
    fourier = sum(v.numel() for k, v in found.items() if k.endswith(("0.W", "time_proj.weight")) and v.ndim == 1)
    assert said["parameters"] - fourier == ours


@pytest.mark.parametrize(
    ("name", "kind", "process"),
    [
        ("score_sde_ncsnpp_small", Denoiser, VE(0.01, 50.0)),
        ("score_sde_ddpmpp_small", Denoiser, VP()),
        ("edm_skip_small", Preconditioned, EDM(0.002, 80.0)),
        ("edm_ve_small", Preconditioned, EDM(0.02, 80.0)),
        ("diffusers_skips_small", Denoiser, VE(0.01, 50.0)),
    ],
)
def test_the_process_is_read_from_the_file(name: str, kind: type, process: object, tmp_path: Path):
    denoiser = interop.load(write(fingerprint(name), tmp_path))
    assert type(denoiser) is kind
    assert denoiser.process == process
    assert not denoiser.training
    assert not any(p.requires_grad for p in denoiser.parameters())


def test_files_of_the_older_kind_are_read_too(tmp_path: Path):
    said = fingerprint("score_sde_ddpmpp_small")
    path = tmp_path / "old.pth"
    torch.save(score_sde_content(said), path, _use_new_zipfile_serialization=False)
    x = images(tuple(said["ask"]["shape"]))
    new = interop.load(write(said, tmp_path))
    assert torch.equal(answer(interop.load(path), said, x), answer(new, said, x))


def test_averaged_weights_are_laid_over_the_trained_ones(tmp_path: Path):
    said = fingerprint("score_sde_ncsnpp_small")
    path = write(said, tmp_path)
    averaged, trained = interop.load(path), interop.load(path, averaged=False)
    for name, value in averaged.net.named_parameters():
        other = dict(trained.net.named_parameters())[name]
        assert torch.allclose(value + 1, other, atol=1e-6)
    frequencies = "conditioning.embedding.fourier.frequencies"
    assert torch.equal(averaged.net.state_dict()[frequencies], trained.net.state_dict()[frequencies])


def test_loading_leaves_the_global_generator_alone(tmp_path: Path):
    path = write(fingerprint("score_sde_ddpm_small"), tmp_path)
    before = torch.random.get_rng_state()
    interop.load(path)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.gpu
@pytest.mark.parametrize("name", names(asked=True, full=False))
def test_a_gpu_answers_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    said = fingerprint(name)
    denoiser = interop.load(write(said, tmp_path))
    x = images(tuple(said["ask"]["shape"]))
    here = answer(denoiser, said, x)
    there = answer(denoiser.cuda(), said, x.cuda())
    assert there.device.type == "cuda"
    assert ((there.cpu() - here) / here.std((1, 2, 3), keepdim=True)).abs().max() < 1e-4
