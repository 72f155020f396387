"""Run the peers' own test suites against dxdt.compat: `python tests/peers.py FOLDER`.

FOLDER holds clones of torchdiffeq, torchsde and torchcde, each in a folder of its name. Small
packages with the peers' names that forward to dxdt.compat are put first on the path, so no test
file is edited. A suite whose clone or drop-in is missing is skipped with the reason.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Peer -> modules its tests import, folder of its tests, command that runs them.
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
SUITES: dict[str, tuple[tuple[str, ...], str, list[str]]] = {
    "torchdiffeq": (
        (),
        "tests",
        [
            "-m",
            "unittest",
            "api_tests",
            "event_tests",
            "gradient_tests",
            "norm_tests",
            "odeint_tests",
        ],
    ),
    "torchsde": (("settings", "types"), "tests", [*PYTEST, "."]),
    "torchcde": (("misc",), "test", [*PYTEST, "--ignore=test_example.py", "."]),
}


def has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def write_stub(folder: Path, peer: str, modules: tuple[str, ...]) -> None:
    """A package named `peer` that is dxdt.compat.`peer`, with its submodules."""
    package = folder / peer
    package.mkdir()
    alias = "import sys\nimport dxdt.compat.{0} as layer\nsys.modules[__name__] = layer\n"
    lines = [f"from dxdt.compat.{peer} import *\n"]
    lines += [f"from . import {module}\n" for module in modules]
    (package / "__init__.py").write_text("".join(lines))
    for module in modules:
        (package / f"{module}.py").write_text(alias.format(f"{peer}.{module}"))


def reason_to_skip(peers: Path | None, peer: str, tests: str) -> str | None:
    if peers is None:
        return "no folder given (make peers PEERS=DIR, with clones of the peers in DIR)"
    if not (peers / peer / tests).is_dir():
        return f"{peers / peer / tests} is no folder"
    if not has_module(f"dxdt.compat.{peer}"):
        return f"dxdt.compat.{peer} does not exist yet"
    return None


def main() -> int:
    named = sys.argv[1] if len(sys.argv) > 1 else ""
    peers = Path(named).resolve() if named else None
    failed = False
    for peer, (modules, tests, command) in SUITES.items():
        if reason := reason_to_skip(peers, peer, tests):
            print(f"{peer}: skipped, {reason}", flush=True)
            continue
        assert peers is not None
        with tempfile.TemporaryDirectory() as stubs:
            write_stub(Path(stubs), peer, modules)
            path = os.pathsep.join(filter(None, [stubs, os.environ.get("PYTHONPATH")]))
            # The clone's root holds the real package: only the stubs may answer to its name.
            run = subprocess.run(
                [sys.executable, *command],
                cwd=peers / peer / tests,
                env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            )
        print(f"{peer}: {'passed' if run.returncode == 0 else 'failed'}", flush=True)
        failed |= run.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
