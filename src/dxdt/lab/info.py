"""What is installed, what the machine has, and how to get what is missing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.table import Table

from dxdt import __version__
from dxdt.lab.data import data_folder

EXTRAS = {
    "lab": ("accelerate", "scikit-learn", "matplotlib", "jinja2", "safetensors", "tqdm", "tyro", "rich"),
    "data": ("datasets",),
    "symbolic": ("sympy",),
    "rl": ("gymnasium", "h5py"),
    "mcmc": ("arviz",),
    "interop": ("diffusers", "safetensors"),
    "series": ("aeon",),
    "bench": ("torchdiffeq", "torchode", "torchsde", "diffrax"),
}
"""For each extra, the packages by which it is recognised."""


def installed(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def print_info(console: Console) -> None:
    """Print versions, devices, extras and the data folder."""
    machine = Table(box=None, show_header=False, pad_edge=False)
    machine.add_row("dxdt", __version__)
    machine.add_row("torch", torch.__version__)
    machine.add_row("Python", platform.python_version())
    machine.add_row("processor", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used")
    for device in _devices():
        machine.add_row("accelerator", device)
    console.print(machine)
    extras = Table(box=None, pad_edge=False, title="\nextras", title_justify="left")
    for column in ("extra", "found", "to get it"):
        extras.add_column(column)
    for extra, packages in EXTRAS.items():
        have = {p: installed(p) for p in packages}
        found = ", ".join(f"{p} {v}" for p, v in have.items() if v) or "-"
        lacking = any(v is None for v in have.values())
        extras.add_row(extra, found, f"pip install 'dxdt\\[{extra}]'" if lacking else "")
    console.print(extras)
    console.print(_data())


def _devices() -> list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return ["Apple GPU (mps)"]
    return ["none: everything runs on the processor"]


def _data() -> str:
    folder = data_folder()
    if folder is None:
        return "\nDXDT_DATA is not set: experiments on measured data are left out."
    return f"\nDXDT_DATA: {folder}"
