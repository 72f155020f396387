"""The examples run, each as a program, and what they find is right."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
FOUND = {
    "spiral": lambda error: error < 0.2,
    "bounce": lambda error: error < 1e-6,
    "samplers": lambda found: all(distances[40] < 0.02 for distances in found.values()),
}


def test_each_example_is_here():
    assert {p.stem for p in EXAMPLES.glob("*.py")} == set(FOUND)


@pytest.mark.parametrize("name", FOUND)
def test_an_example_is_right(name):
    assert FOUND[name](runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]())


def test_an_example_is_a_program():
    done = subprocess.run([sys.executable, str(EXAMPLES / "bounce.py")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("largest error"), done.stderr
