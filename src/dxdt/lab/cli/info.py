"""What is installed, what the machine has, and how to get what is missing."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dxdt import __version__
from dxdt.lab.cli.parse import call
from dxdt.lab.data.folder import data_folder
from dxdt.ops.code_cache import VARIABLE, cache, folder
from dxdt.ops.optional import PACKAGES


def installed(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(args: list[str]) -> None:
    """Read the arguments and run."""
    call(info, args)


def info() -> None:
    """Print versions, devices, and what is missing with the command that installs it."""
    console, build = Console(), version("torch")
    machine = Table(box=None, show_header=False, pad_edge=False)
    machine.add_row("dxdt", __version__)
    machine.add_row("torch", build)
    machine.add_row("Python", platform.python_version())
    machine.add_row("processor", _processor())
    for device in _devices(build):
        machine.add_row("accelerator", device)
    console.print(machine)
    extras = Table(box=None, pad_edge=False, title="\nextras", title_justify="left")
    for column in ("extra", "found", "to get it"):
        extras.add_column(column)
    for extra, packages in PACKAGES.items():
        have = {p: installed(p) for p in packages.values()}
        found = ", ".join(f"{p} {v}" for p, v in have.items() if v) or "-"
        lacking = any(v is None for v in have.values())
        extras.add_row(extra, found, f"pip install 'dxdt\\[{extra}]'" if lacking else "")
    console.print(extras)
    console.print(_data())
    console.print(_code())


def _processor() -> str:
    threads = os.environ.get("OMP_NUM_THREADS")
    return f"{os.cpu_count()} cores" + (f", OMP_NUM_THREADS={threads}" if threads else "")


def _devices(build: str) -> list[str]:
    """Names of the accelerators; torch, which takes seconds to import, is asked only where there may be one."""
    if not may_have_accelerators(build):
        return ["none: everything runs on the processor"]
    import torch

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


def may_have_accelerators(build: str) -> bool:
    """Whether a build of torch could find a device: it is made for some, and the machine has a driver."""
    if build.endswith("+cpu"):
        return False
    if sys.platform != "linux":
        return True
    drivers = ("nvidiactl", "dxg", "kfd", "dri" if "xpu" in build else "accel")
    return any((Path("/dev") / driver).exists() for driver in drivers)


def _code() -> str:
    """Where generated code is kept, and how much of it there is."""
    where, kept = folder(), cache()
    held = kept.held()
    size = f"{held.files} libraries, {held.bytes / 1e6:.1f} of at most {kept.bound / 1e6:.0f} MB"
    of_torch = kept.torch()
    beside = f", and {of_torch / 1e6:.1f} MB of torch's compiler" if of_torch else ""
    return f"generated code: {where} ({size}{beside}; {VARIABLE} names another folder)"
