"""The wheel in environments that have only what an extra brings: every import, every command, the demo.

An environment is a new virtual one whose packages are links to those of this one, chosen by their requirements, so that
nothing is fetched.
"""

import os
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("compat", "compiler", "diffeq", "diffusion", "implicit", "interop", "lab", "mcmc", "models", "nn", "paths")
COMMANDS = ("demo", "train", "average", "sample", "likelihood", "evaluate", "runs", "info")

pytestmark = pytest.mark.slow
packaging = pytest.importorskip("packaging.requirements")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no wheel can be built here: {done.stderr.strip().splitlines()[-1]}")
    return next(folder.glob("dxdt-*.whl"))


def needed(name: str, extra: str = "") -> set[str]:
    """A package with all that it requires, by the names of pip."""
    found, todo = set(), [(name, extra)]
    while todo:
        name, extra = todo.pop()
        try:
            dist = distribution(name)
        except PackageNotFoundError:
            continue
        known = dist.metadata["Name"].lower().replace("_", "-")
        if (known, extra) in found:
            continue
        found.add((known, extra))
        for line in dist.requires or ():
            wanted = packaging.Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                todo += [(wanted.name, e) for e in (wanted.extras or {""})]
    return {name for name, _ in found}


class Environment:
    """A virtual environment with the wheel, the core requirements and those of some extras."""

    def __init__(self, folder: Path, wheel: Path, extras: tuple[str, ...]) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        site = next((folder / "lib").glob("python*")) / "site-packages"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
            about = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
        wanted = [
            packaging.Requirement(x.partition(": ")[2]) for x in about.splitlines() if x.startswith("Requires-Dist")
        ]
        chosen = [r for r in wanted if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
        for name in sorted({name for r in chosen for name in needed(r.name)}):
            self._link(name, site)
        self.folder = folder

    def _link(self, name: str, site: Path) -> None:
        dist = distribution(name)
        tops = {file.parts[0] for file in dist.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            place = Path(str(dist.locate_file(top)))
            if place.exists() and not (site / top).exists():
                (site / top).symlink_to(place)

    def run(self, *args: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        keep = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "OMP_NUM_THREADS", "DXDT_CACHE")}
        command = [str(self.folder / "bin" / "python"), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=self.folder, env=keep)


@pytest.fixture(scope="module")
def core(tmp_path_factory, wheel):
    return Environment(tmp_path_factory.mktemp("core"), wheel, ())


@pytest.fixture(scope="module")
def lab(tmp_path_factory, wheel):
    return Environment(tmp_path_factory.mktemp("lab"), wheel, ("lab",))


def test_the_wheel_holds_every_module(wheel):
    """An ignored folder of the checkout, such as runs, hides no room of that name from the builder."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("dxdt/")}
    source = ROOT / "src"
    assert {str(p.relative_to(source)) for p in source.rglob("*.py")} <= held


def test_every_room_is_imported_with_the_core_alone(core):
    code = "import importlib\n" + "\n".join(f"importlib.import_module('dxdt.{room}')" for room in ROOMS)
    done = core.run("-W", "error::DeprecationWarning:dxdt", "-c", code)
    assert done.returncode == 0, done.stderr


def test_a_solve_needs_the_core_alone(core):
    code = "import torch, dxdt; print(dxdt.solve(dxdt.ODE(lambda t, y: -y), torch.ones(2), (0.0, 1.0)).status.name)"
    done = core.run("-c", code)
    assert done.stdout == "SUCCESS\n", done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_the_extra_says_how_to_get_it(core, command):
    done = core.run("-m", "dxdt", command)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.strip().endswith("is needed here and not installed: run pip install 'dxdt[lab]'.")


def test_help_and_version_need_no_extra(core):
    assert "likelihood" in core.run("-m", "dxdt", "--help").stdout
    assert core.run("-m", "dxdt", "--version").stdout.startswith("dxdt ")
    done = core.run("-m", "dxdt", "bench")
    assert done.returncode == 1 and "make bench" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        (
            "from dxdt.ops.optional import require; require('diffusers', 'interop')",
            "interop",
        ),
        ("from dxdt.lab.data.readers import open_images; open_images('hf:mnist')", "data"),
        ("from dxdt.ops.optional import require; require('arviz', 'mcmc')", "mcmc"),
    ],
)
def test_each_absent_extra_is_named(lab, code, extra):
    done = lab.run("-c", code)
    assert done.stderr.strip().endswith(f"run pip install 'dxdt[{extra}]'."), done.stderr


def test_the_demo_runs_with_the_extra_of_the_laboratory_alone(lab):
    """Then its model is sampled and measured by the commands."""
    done = lab.run("-m", "dxdt", "demo", "--quick", timeout=600)
    assert done.returncode == 0, done.stderr
    assert (lab.folder / "runs/demo-quick/report.html").stat().st_size > 10_000
    assert "\r" not in done.stderr
    train = (
        "train",
        "score",
        "--training.steps",
        "2",
        "--training.batch",
        "4",
        "--net.channels",
        "4",
        "--pictures",
        "0",
    )
    for args in (train, ("sample", "runs/score", "--count", "2", "--how.steps", "2"), ("runs",), ("info",)):
        done = lab.run("-m", "dxdt", *args)
        assert done.returncode == 0, done.stderr
