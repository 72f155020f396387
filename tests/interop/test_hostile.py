"""Hostile and damaged files: refused in one sentence, with nothing run."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dxdt import interop
from dxdt.diffusion import VE, VP, Linear, RectifiedFlow, SubVP, Table, linear_betas
from dxdt.nn import ncsnpp
from interop.foreign import fingerprint, score_sde_content, write


class Attack:
    """Unpickled by anything that runs pickles, it makes a folder."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


def refused(path: Path, words: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        interop.load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.parent) in message or "wrap" in message


def attacks(mark: Path) -> list[Attack]:
    code = f"__import__('os').mkdir({str(mark)!r})"
    return [
        Attack(os.mkdir, str(mark)),
        Attack(os.system, f"mkdir {mark}"),
        Attack(eval, code),
        Attack(exec, code),
        Attack(getattr, "text", "upper"),
        Attack(torch.hub.load, str(mark.parent), "x"),
        Attack(torch.load, str(mark.parent / "other.pt")),
    ]


@pytest.mark.parametrize("which", range(7))
@pytest.mark.parametrize("kind", ["pickle", "zip", "older"])
def test_a_malicious_pickle_is_refused_and_not_run(kind: str, which: int, tmp_path: Path):
    mark, path = tmp_path / "mark", tmp_path / "file.pkl"
    content = {"ema": attacks(mark)[which], "model": {}, "step": attacks(mark)[which]}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    refused(path, "refused, and nothing in it was run")
    assert not mark.exists()


def test_an_attack_hidden_in_a_storage_of_a_pickle_is_refused(tmp_path: Path):
    mark, path = tmp_path / "mark", tmp_path / "file.pkl"
    inside = io.BytesIO()
    torch.save(Attack(os.mkdir, str(mark)), inside)
    path.write_bytes(pickle.dumps({"ema": Attack(torch.storage._load_from_bytes, inside.getvalue())}))
    refused(path, "refused, and nothing in it was run")
    assert not mark.exists()


def test_source_text_of_a_network_pickle_is_not_run(tmp_path: Path):
    """The file's source says SystemExit; reading it answers all the same."""
    assert interop.load(write(fingerprint("edm_vp_small"), tmp_path)) is not None


def test_a_pickle_cannot_change_what_it_names(tmp_path: Path):
    """GLOBAL _rebuild_tensor_v2, then BUILD with attributes: no call, but functions would be changed."""
    function = torch._utils._rebuild_tensor_v2
    before, path = function.__defaults__, tmp_path / "file.pkl"
    state = pickle.dumps((None, {"__defaults__": ("changed",)}), 2)[2:-1]
    path.write_bytes(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state + b"b.")
    refused(path, "it changes a type")
    assert function.__defaults__ == before


def test_numbers_of_numpy_cannot_hold_pointers(tmp_path: Path):
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps({"ema": np.dtype("O")}))
    refused(path, "numpy dtype")
    torch.save({"model": {}, "ema": {}, "step": np.zeros(2, dtype="O")}, path)
    refused(path, "refused")


@pytest.mark.parametrize("name", ["score_sde_ddpmpp_small", "edm_skip_small", "diffusers_ddpm_small"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.999])
def test_a_truncated_file_is_a_clear_error(name: str, share: float, tmp_path: Path):
    path = write(fingerprint(name), tmp_path)
    file = path if path.is_file() else path / "unet" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="truncated|whole|fetch") as caught:
        interop.load(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=64))
def test_noise_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "noise.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="noise.pkl"):
        interop.load(path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 4000), st.binary(min_size=1, max_size=8))
def test_a_damaged_pickle_never_runs_anything(tmp_path: Path, place: int, patch: bytes):
    """Bytes changed at any place of a pickle's head end in an error, or change nothing."""
    path = tmp_path / "damaged.pkl"
    source = tmp_path / "network-snapshot.pkl"
    if not source.exists():
        write(fingerprint("edm_skip_small"), tmp_path)
    content = bytearray(source.read_bytes())
    content[place : place + len(patch)] = patch
    path.write_bytes(content)
    try:
        interop.load(path)
    except ValueError as error:
        assert "damaged.pkl" in str(error)


def test_a_zip_that_is_no_checkpoint_is_refused(tmp_path: Path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    refused(path, "whole checkpoint|refused")


def changed(name: str, change: Callable[[dict[str, Any]], Any], folder: Path) -> Path:
    said = fingerprint(name)
    change(said)
    return write(said, folder)


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("module.all_modules.2.weight", [32, 1, 3, 3], "where the network has"),
        ("module.all_modules.3.Conv_1.weight", [32, 31, 3, 3], "where the network has"),
        ("module.all_modules.0.weight", [128], "should be the first dense layer"),
    ],
)
def test_wrong_channels_are_named(key: str, shape: list[int], words: str, tmp_path: Path):
    refused(changed("score_sde_ddpmpp_small", lambda said: said["keys"].update({key: shape}), tmp_path), words)


def test_a_missing_or_foreign_tensor_is_named(tmp_path: Path):
    path = changed("edm_skip_small", lambda said: said["keys"].pop("dec.8x8_in0.conv0.weight"), tmp_path)
    refused(path, "dec.8x8_in0.conv0.weight is missing")
    path = changed("edm_skip_small", lambda said: said["keys"].update({"extra.weight": [2]}), tmp_path)
    refused(path, "extra.weight belongs to no part")
    path = changed("diffusers_ddpm_small", lambda said: said["config"].update(in_channels=4), tmp_path)
    refused(path, "conv_in.weight becomes")
    path = changed(
        "score_sde_ddpmpp_small", lambda said: said["keys"].pop("module.all_modules.5.Conv_1.bias"), tmp_path
    )
    refused(path, "missing|holds")


def test_averages_that_do_not_fit_are_refused(tmp_path: Path):
    content = score_sde_content(fingerprint("score_sde_ncsnpp_small"))
    path = tmp_path / "a.pth"
    content["ema"]["shadow_params"].pop()
    torch.save(content, path)
    refused(path, "averaged tensors do not fit")
    interop.load(path, averaged=False)
    shadows = content["ema"]["shadow_params"]
    content["ema"]["shadow_params"] = [*shadows, shadows[0]]
    torch.save(content, path)
    refused(path, "has shape")


@pytest.mark.parametrize(
    ("name", "process", "words"),
    [
        ("score_sde_ncsnpp_small", VE(0.01, 348.0), "from 0.01 to 50"),
        ("score_sde_ncsnpp_small", VP(), "trained on VE"),
        ("score_sde_ddpmpp_small", RectifiedFlow(), "VE, VP or SubVP"),
        ("score_sde_ddpmpp_small", VE(0.01, 90.0), "from 0.01 to 50"),
        ("diffusers_ddpm_small", VP(Linear()), "trained on"),
        ("diffusers_skips_small", VE(0.01, 1348.0), "trained on"),
    ],
)
def test_a_schedule_that_contradicts_the_file_is_refused(name: str, process: Any, words: str, tmp_path: Path):
    refused(write(fingerprint(name), tmp_path), words, process=process)


def test_what_a_file_cannot_say_is_said_by_arguments(tmp_path: Path):
    path = write(fingerprint("score_sde_ddpmpp_small"), tmp_path)
    assert interop.load(path, process=SubVP()).process == SubVP()
    levels = VP(Table.from_betas(linear_betas()))
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0.2, 1.0])
    net = interop.load(path).net
    assert torch.allclose(
        interop.load(path, process=levels)(x, t).noise, net(x, torch.tensor([199.0, 999.0])), atol=1e-5
    )
    discrete = interop.load(path, process=VE(0.01, 50.0))
    assert not discrete.net.net.architecture.centred
    label = torch.tensor([799.0, 0.0])  # round(999 * 0.8) = 799
    levels = torch.tensor([0.01 * 5000 ** (200 / 999), 50.0])[:, None, None, None]
    assert torch.allclose(discrete(x, t).score, discrete.net.net(x, label) / levels, rtol=1e-4)
    refused(path, "where the network has|no tensor", architecture=ncsnpp(3, width=64))


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("config", {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}, "CrossAttnDownBlock2D"),
        ("config", {"time_embedding_type": "learned"}, "learned"),
        ("config", {"block_out_channels": [32]}, "do not match"),
        ("config", {"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ("scheduler", {"_class_name": "LCMScheduler"}, "LCMScheduler"),
        ("scheduler", {"prediction_type": "flow"}, "flow"),
        ("scheduler", {"beta_schedule": "laplace"}, "laplace"),
    ],
)
def test_configurations_that_are_not_known_are_named(part: str, change: dict[str, Any], words: str, tmp_path: Path):
    path = changed("diffusers_ddpm_small", lambda said: said[part].update(change), tmp_path)
    with pytest.raises(ValueError, match=words):
        interop.load_diffusers(path, own=True)


def test_broken_folders_are_refused(tmp_path: Path):
    path = write(fingerprint("diffusers_ddpm_small"), tmp_path / "a")
    (path / "scheduler" / "scheduler_config.json").write_text("{")
    refused(path, "is not JSON")
    (path / "scheduler" / "scheduler_config.json").unlink()
    refused(path, "has no scheduler")
    (path / "unet" / "diffusion_pytorch_model.safetensors").rename(path / "gone")
    with pytest.raises(ValueError, match="fetch the weights"):
        interop.load(path, process=VP())
    index = {"weight_map": {"a": "../../gone"}}
    (path / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside its folder"):
        interop.load(path, process=VP())
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no folder of diffusers")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        interop.load(tmp_path / "nowhere")


def test_a_network_of_another_kind_is_named(tmp_path: Path):
    def other(said: dict[str, Any]) -> None:
        said["wrapper"] = "OtherPrecond"

    refused(changed("edm_skip_small", other, tmp_path), "wrapped in OtherPrecond are not read")
    path = changed("edm_skip_small", lambda said: said["options"].update(encoder_type="odd"), tmp_path)
    refused(path, "encoder_type='odd'")
    path = changed("edm_skip_small", lambda said: said["options"].update(novelty=3), tmp_path)
    refused(path, "novelty=3")
    path = changed("edm2_small", lambda said: said["options"].update(novelty=3), tmp_path)
    refused(path, "novelty=3")
    path = changed("edm2_small", lambda said: said["options"].pop("label_dim"), tmp_path)
    refused(path, "construction are not in the file")

    def without(said: dict[str, Any]) -> None:
        said["attributes"].pop("sigma_data")

    refused(changed("edm_skip_small", without, tmp_path), "sigma_data is missing")
    content = score_sde_content(fingerprint("score_sde_ddpmpp_small"))
    content["model"]["module.all_modules.0.bias"] = "no tensor"
    torch.save(content, tmp_path / "b.pth")
    refused(tmp_path / "b.pth", "damaged")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "b.pth")
    refused(tmp_path / "b.pth", "of no known kind")
