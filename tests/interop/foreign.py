"""Files as the authors' code writes them, made from a fingerprint without that code."""

import json
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from interop.weights import weights

FINGERPRINTS = Path(__file__).resolve().parent / "fingerprints"


def fingerprint(name: str) -> dict[str, Any]:
    return json.loads((FINGERPRINTS / f"{name}.json").read_text())


def names(*, asked: bool | None = None, full: bool | None = None) -> list[str]:
    """Fingerprints by what they hold: an answer or keys alone, of published size or small."""
    found = sorted(p.stem for p in FINGERPRINTS.glob("*.json"))
    if asked is not None:
        found = [n for n in found if n.endswith("keys") is not asked]
    if full is not None:
        found = [n for n in found if n.endswith("full") is full]
    return found


def write(said: dict[str, Any], folder: Path) -> Path:
    """Write the file or folder of a fingerprint; return its path."""
    return {"score_sde": write_score_sde, "edm": write_edm, "diffusers": write_diffusers}[said["format"]](said, folder)


def score_sde_content(said: dict[str, Any]) -> dict[str, Any]:
    """What `torch.save` is given: the averaged weights are those of the formula, the trained ones are others."""
    model = said["model"]
    levels = np.exp(np.linspace(np.log(model["sigma_max"]), np.log(model["sigma_min"]), model["num_scales"]))
    keys = {k: tuple(v) for k, v in said["keys"].items() if k != "module.sigmas"}
    averaged = weights(keys)
    frozen = "module.all_modules.0.W"
    tensors: OrderedDict[str, Tensor] = OrderedDict({"module.sigmas": torch.tensor(levels)})
    tensors |= {k: v if k == frozen else v + 1 for k, v in averaged.items()}
    shadows = [v for k, v in averaged.items() if k != frozen]
    # The warm-up of the learning rate leaves a number of numpy's behind.
    group = {"lr": np.float64(2e-4), "betas": (0.9, 0.999), "params": list(range(len(shadows)))}
    return {
        "optimizer": {"state": {}, "param_groups": [group]},
        "model": tensors,
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": shadows},
        "step": np.int64(7),
    }


def write_score_sde(said: dict[str, Any], folder: Path) -> Path:
    path = folder / "checkpoint_8.pth"
    torch.save(score_sde_content(said), path)
    return path


class Persistent:
    """Reduces to what NVIDIA's persistence writes; its source text must never run."""

    def __init__(self, kind: str, state: dict[str, Any]) -> None:
        self.kind, self.state = kind, state

    def __reduce__(self) -> tuple[Any, ...]:
        source = "raise SystemExit('source text was run')"
        meta = {"type": "class", "version": 6, "module_src": source, "class_name": self.kind, "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def tree(tensors: dict[str, Tensor], kind: str, more: dict[str, Any]) -> Persistent:
    """Nested modules from dotted names; what torch makes itself (ModuleDict) is torch's."""
    parameters, buffers, children = OrderedDict(), OrderedDict(), OrderedDict()
    below: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        head, _, rest = name.partition(".")
        if rest:
            below.setdefault(head, {})[rest] = value
        elif head in ("resample_filter", "freqs", "phases"):
            buffers[head] = value
        else:
            parameters[head] = nn.Parameter(value, requires_grad=False)
    for head, inside in below.items():
        child = tree(inside, "Layer", {})
        if head in ("enc", "dec"):
            made = nn.ModuleDict()
            made.__dict__["_modules"] = child.state["_modules"]
            children[head] = made
        else:
            children[head] = child
    state = {"training": False, "_parameters": parameters, "_buffers": buffers, "_modules": children, **more}
    return Persistent(kind, state)


def write_edm(said: dict[str, Any], folder: Path) -> Path:
    path = folder / "network-snapshot.pkl"
    keys = {k: tuple(v) for k, v in said["keys"].items()}
    inner = tree(weights(keys), said["network"], {"_init_args": (), "_init_kwargs": said["options"]})
    outer = tree({}, said["wrapper"], {"_init_kwargs": {}, **said["attributes"]})
    outer.state["_modules"]["unet" if said["wrapper"] == "Precond" else "model"] = inner
    stub: Any = types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise SystemExit("the persistence of the file was run")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    stub._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules |= {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": stub}
    try:
        # Pipes and encoders hold arrays, which are of no use here.
        pipe = Persistent("AugmentPipe", {"_init_kwargs": {"p": 0.12}, "table": np.arange(4.0), "size": np.int64(3)})
        content = {"ema": outer, "loss_fn": None, "augment_pipe": pipe, "dataset_kwargs": {"path": "there"}}
        with path.open("wb") as file:
            pickle.dump(content, file)
    finally:
        del sys.modules["torch_utils.persistence"], sys.modules["torch_utils"]
    return path


def write_diffusers(said: dict[str, Any], folder: Path) -> Path:
    for part in ("unet", "scheduler"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    (folder / "unet" / "config.json").write_text(json.dumps(said["config"]))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(said["scheduler"]))
    tensors = weights({k: tuple(v) for k, v in said["keys"].items()})
    safetensors.torch.save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


def answer(denoiser: Any, said: dict[str, Any], x: Tensor) -> Tensor:
    """What the denoiser says to what the authors' network was asked."""
    ask = said["ask"]
    labels = {} if not ask.get("labels") else {"labels": torch.tensor(ask["labels"], device=x.device)}
    with torch.no_grad():
        post = denoiser(x, torch.tensor(ask["times"], device=x.device), **labels)
    if ask["kind"] == "output":
        return denoiser.parameterisation.write(post)
    return getattr(post, ask["kind"])
