"""Optional third-party packages: imported where they are used, with a remedy when missing.

This is the only way a module of dxdt may import something inside a function.
"""

import importlib
from types import ModuleType

__all__ = ["PACKAGES", "missing", "require"]

PACKAGES = {
    "lab": {
        "PIL": "pillow",
        "accelerate": "accelerate",
        "jinja2": "jinja2",
        "matplotlib": "matplotlib",
        "rich": "rich",
        "skimage": "scikit-image",
        "sklearn": "scikit-learn",
        "tensorboard": "tensorboard",
        "torchmetrics": "torchmetrics",
        "tqdm": "tqdm",
        "tyro": "tyro",
        "yaml": "pyyaml",
    },
    "data": {"datasets": "datasets"},
    "mcmc": {"arviz": "arviz"},
    "interop": {"diffusers": "diffusers", "huggingface_hub": "huggingface-hub", "safetensors": "safetensors"},
    "bench": {
        "diffrax": "diffrax",
        "jax": "jax",
        "torchcde": "torchcde",
        "torchdiffeq": "torchdiffeq",
        "torchode": "torchode",
        "torchsde": "torchsde",
    },
}
"""For each extra, the modules that its packages bring, each with the package's name for pip."""


def missing(module: str, extra: str | None = None) -> str:
    """The sentence that says how to get a module that is not installed.

    Args:
        module: dotted name of the module.
        extra: the extra of dxdt that brings it; the first of `PACKAGES` by default, and where none does, the module is
            taken for a package of its own name.
    """
    top = module.partition(".")[0]
    brings = next((e for e, modules in PACKAGES.items() if top in modules), None)
    extra = brings if extra is None else extra
    package = top if brings is None else PACKAGES[brings][top]
    remedy = package if extra is None else f"'dxdt[{extra}]'"
    return f"{package} is needed here and not installed: run pip install {remedy}."


def require(name: str, extra: str | None = None) -> ModuleType:
    """Import the package ``name``, or say how to install it.

    Args:
        name: dotted name of the module to import.
        extra: the extra of dxdt that installs it, as in `missing`.

    Raises:
        ImportError: the package is not installed; the message is one sentence with the
            command to run. A package that is there but fails to import raises its own error.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ImportError(missing(name, extra), name=package) from error
