"""What every test stands on: one torch thread, a seed, data if there is some, a time bill."""

import os
import random
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dxdt.compiler.native import program
from shadow import Walk

# jaxtyping's import hook stays off: its wrappers keep torch.compile from tracing a whole field.

HERE = Path(__file__).resolve().parent
# Seconds on two cores. Rooms that share a budget share a line of the bill.
BUDGETS = {"ops + compiler + paths": 45.0, "diffeq": 120.0, "compiled": 150.0, "diffusion": 120.0}
OTHER_BUDGET = 45.0
LINES = dict.fromkeys(("ops", "compiler", "paths"), "ops + compiler + paths")

spent: dict[str, float] = defaultdict(float)


def room_of(path: Path) -> str:
    """The first folder below tests/, or the stem of a file that lies in tests/ itself."""
    parts = path.relative_to(HERE).parts
    room = parts[0] if len(parts) > 1 else path.stem.removeprefix("test_")
    return LINES.get(room, room)


def pytest_configure(config: pytest.Config) -> None:
    # More threads slow down small tensors, and last bits vary with their number.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Processes that share the work compare their lists of tests.
    vague = sorted({x.nodeid for x in items if " at 0x" in x.nodeid})
    if vague:
        raise pytest.UsageError(f"names of tests hold addresses, which differ from run to run; give ids: {vague[:3]}")
    if not torch.cuda.is_available():
        no_gpu = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(no_gpu)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    path = (HERE.parent / report.location[0]).resolve()
    if path.is_relative_to(HERE):
        spent[room_of(path)] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not spent:
        return
    terminalreporter.write_sep("-", "seconds per room, and budget")
    for room, seconds in sorted(spent.items()):
        budget = BUDGETS.get(room, OTHER_BUDGET)
        note = "  over budget" if seconds > budget else ""
        terminalreporter.write_line(f"{room:<24}{seconds:>8.1f}{budget:>8.0f}{note}")
    terminalreporter.write_line(f"{'all':<24}{sum(spent.values()):>8.1f}")


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """Seed Python, numpy and torch from the test's name: the same numbers in any order."""
    value = zlib.crc32(request.node.nodeid.encode())
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
    return value


@pytest.fixture(autouse=True)
def default_dtype_is_kept() -> Iterator[None]:
    """A test that changes torch's default dtype must not leak it into the next one."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data sets that DXDT_DATA names."""
    name = os.environ.get("DXDT_DATA")
    if not name:
        pytest.skip("DXDT_DATA is not set: it names the folder of real data sets")
    folder = Path(name)
    if not folder.is_dir():
        pytest.skip(f"DXDT_DATA names {name}, which is no folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def programs_are_walked() -> Iterator[None]:
    """Of every program that is generated it is known who writes what before whom (see ``shadow``)."""
    translator, run = program._Translator, program._Translator.run

    def walked(self: Any) -> Any:
        source = run(self)
        Walk(source).check()
        return source

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translator, "run", walked)
        yield
