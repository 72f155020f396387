"""Damaged configurations: every wrong entry is named in one sentence, and nothing large is built before that."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch

from dxdt import interop
from dxdt.diffusion import VP, Denoiser
from dxdt.interop import diffusers_config, diffusers_schedule, edm, edm2
from dxdt.nn import UNet
from interop.foreign import fingerprint, write

WRONG: list[Any] = [
    -1,
    0,
    10**9,
    10**18,
    10**400,
    0.5,
    math.nan,
    math.inf,
    -1e300,
    "x",
    "",
    [],
    [[]],
    {},
    {"a": 1},
    True,
    [None],
    ["x"],
    [10**9, 10**9],
    [-1, -2],
    None,
]


def _unet(said: Mapping[str, Any]) -> Any:
    return diffusers_config.checked({**fingerprint("diffusers_ddpm_small")["config"], **said}, "the file")


def _schedule(said: Mapping[str, Any]) -> Any:
    return diffusers_schedule.training_of({"_class_name": "DDPMScheduler", **said}, "the file")


def _edm(kind: str) -> Callable[[Mapping[str, Any]], Any]:
    needed = {"img_resolution": 8, "in_channels": 3, "out_channels": 3}
    return lambda said: edm.options_of(kind, {**needed, **said}, "the file")


def _edm2(said: Mapping[str, Any]) -> Any:
    return edm2.options_of({"img_resolution": 8, "img_channels": 3, "label_dim": 0, **said}, "the file")


TABLES: dict[str, tuple[Callable[[Mapping[str, Any]], Any], list[str]]] = {
    "UNet2DModel": (_unet, sorted(diffusers_config._KINDS)),
    "scheduler": (_schedule, sorted(diffusers_schedule._KINDS)),
    "SongUNet": (_edm("SongUNet"), sorted(edm._KINDS["SongUNet"])),
    "DhariwalUNet": (_edm("DhariwalUNet"), sorted(edm._KINDS["DhariwalUNet"])),
    "EDM2": (_edm2, sorted(edm2._KINDS)),
}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, (_, keys) in TABLES.items() for key in keys])
def test_an_entry_is_what_it_should_be_or_is_named(name: str, key: str):
    read, _ = TABLES[name]
    refused = 0
    for value in WRONG:
        try:
            read({key: value})
        except ValueError as error:
            refused += 1
            assert "the file" in str(error)
            assert key in str(error)
            assert "\n" not in str(error)
            assert len(str(error)) < 700
    assert refused >= len(WRONG) // 2


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_out_channels", [10**6, 10**6]),
        ("in_channels", 10**6),
        ("layers_per_block", 1000),
        ("time_embedding_dim", 10**6),
        ("num_class_embeds", 10**6),
        ("out_channels", 10**6),
        ("block_out_channels", [32] * 10**5),
        ("time_embedding_type", "odd"),
        ("act_fn", "odd"),
        ("resnet_time_scale_shift", "odd"),
        ("down_block_types", ["OddBlock2D", "AttnDownBlock2D"]),
        ("norm_num_groups", 7),
    ],
)
def test_networks_out_of_proportion_are_refused_unbuilt(key: str, value: Any, own: bool, tmp_path: Path):
    if not own:
        pytest.importorskip("diffusers", reason="the extra interop is not installed")
    said = fingerprint("diffusers_ddpm_small")
    said["config"][key] = value
    path = write(said, tmp_path)
    begun = time.process_time()
    with pytest.raises(ValueError, match=str(path)) as caught:
        interop.load_diffusers(path, own=own)
    assert "\n" not in str(caught.value)
    assert time.process_time() - begun < 5  # no measure of speed: it would take minutes and more memory than there is


@pytest.mark.parametrize(
    ("name", "part", "key", "value"),
    [
        ("edm_vp_small", "options", "num_blocks", 1000),
        ("edm_vp_small", "options", "model_channels", 10**6),
        ("edm_vp_small", "options", "label_dim", 10**7),
        ("edm_vp_small", "attributes", "M", 10**9),
        ("edm_adm_small", "attributes", "M", 10**7),
        ("edm2_small", "options", "num_blocks", 900),
        ("edm2_small", "options", "channels_per_head", 7),
        ("edm2_small", "attributes", "sigma_data", "x"),
        ("edm_skip_small", "attributes", "sigma_max", 0.001),
        ("edm_skip_small", "attributes", "sigma_data", 0),
    ],
)
def test_a_changed_pickle_of_edm_ends_soon(name: str, part: str, key: str, value: Any, tmp_path: Path):
    said = fingerprint(name)
    said[part][key] = value
    path = write(said, tmp_path)
    begun = time.process_time()
    with pytest.raises(ValueError, match=str(path)):
        interop.load(path)
    assert time.process_time() - begun < 5


def test_our_own_descriptions_are_checked_likewise(tmp_path: Path):
    path = tmp_path / "own.safetensors"
    interop.save(path, Denoiser(UNet(1, channels=8, multipliers=(1, 2), blocks=1, features=8), VP()))
    with safetensors.safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["dxdt"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for key, value in [
        ("blocks", 10**9),
        ("channels", 10**6),
        ("multipliers", [1] * 10**5),
        ("multipliers", 3),
        ("patch", 10**6),
        ("heads", 3),
        ("dropout", -1),
        ("features", 7),
        ("classes", "x"),
    ]:
        changed = {**said, "net": {**said["net"], "options": {**said["net"]["options"], key: value}}}
        safetensors.torch.save_file(tensors, path, metadata={"dxdt": json.dumps(changed)})
        with pytest.raises(ValueError, match="own.safetensors") as caught:
            interop.load(path)
        assert "\n" not in str(caught.value)
    deep = json.dumps(said).replace('"about": {}', '"about": ' + "[" * 10**5 + "]" * 10**5)
    for text in (deep, json.dumps(said).replace('"format": 1', f'"format": {"9" * 5000}')):
        safetensors.torch.save_file(tensors, path, metadata={"dxdt": text})
        with pytest.raises(ValueError, match="own.safetensors"):
            interop.load(path)


def test_json_without_end_is_refused(tmp_path: Path):
    path = write(fingerprint("diffusers_ddpm_small"), tmp_path)
    for text in ("[" * 10**5 + "]" * 10**5, '{"in_channels": ' + "9" * 5000 + "}", "[1, 2]", "", "\xff"):
        (path / "unet" / "config.json").write_text(text, encoding="latin1")
        with pytest.raises(ValueError, match=r"config.json") as caught:
            interop.load(path)
        assert "\n" not in str(caught.value)
