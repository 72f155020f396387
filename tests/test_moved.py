"""Names of version 0.1 still lead to what they named: imports, pickles, saved models."""

import importlib
import pickle
import subprocess
import sys
import warnings

import pytest

import dxdt
import dxdt.diffusion
from dxdt.moved import MOVED


@pytest.fixture(autouse=True)
def doors_are_put_back():
    """Python puts an imported module in the place of the function of its name; the old modules answer calls, but what
    compiles a function does not look through them."""
    assert callable(dxdt.solve) and callable(dxdt.diffusion.sample)  # names are made when they are asked for
    kept = [(door, dict(vars(door))) for door in (dxdt, dxdt.diffusion)]
    yield
    for door, names in kept:
        for name, value in names.items():
            if vars(door).get(name) is not value:
                setattr(door, name, value)


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_module_is_the_new_one(old: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        former, today = importlib.import_module(old), importlib.import_module(MOVED[old])
    for name in getattr(today, "__all__", ()):
        assert getattr(former, name) is getattr(today, name)


CODE = """
import pickle, sys, warnings
import dxdt
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    from dxdt.solve import ODE, PID
    from dxdt.solve.controller import PID, Clip
    from dxdt.diffusion.variance import VP
    import dxdt.solve.loop
assert ODE is dxdt.ODE and Clip is dxdt.Clip and VP is dxdt.diffusion.VP
assert dxdt.solve.loop.advance is dxdt.diffeq.loop.advance.advance
told = [str(w.message) for w in seen if w.category is DeprecationWarning]
assert "dxdt.solve.controller is dxdt.diffeq.control.controller now; the old name will go" in told, told
import torch
y1 = dxdt.solve(ODE(lambda t, y: -y), torch.ones(2), (0.0, 1.0)).y1
assert torch.allclose(y1, torch.tensor(0.3678794), atol=1e-3)
import dxdt.diffusion.sample, dxdt.diffusion.reverse
oracle = dxdt.diffusion.gaussian_oracle(VP(), torch.zeros(2), torch.tensor(0.5))
assert dxdt.diffusion.sample(oracle, (3, 2), steps=2).shape == (3, 2)
assert dxdt.diffusion.reverse(oracle).tau == 0
"""


def test_old_imports_work_in_a_fresh_process_and_say_what_is_new():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_pickle_that_names_an_old_module_loads():
    said = pickle.dumps(dxdt.PID(rtol=1e-5), protocol=0)
    now = b"dxdt.diffeq.control.pid"
    assert now in said
    said = said.replace(now, b"dxdt.solve.controller")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert pickle.loads(said) == dxdt.PID(rtol=1e-5)


def test_a_name_that_clashed_says_what_it_is_now():
    with pytest.warns(DeprecationWarning, match=r"dxdt.ExactWeight now; the exact trace is dxdt.diffusion.Exact"):
        assert dxdt.Exact is dxdt.ExactWeight
    from dxdt.diffusion import Exact
    from dxdt.ops.autodiff import Exact as Trace

    assert Exact is Trace and "Exact" not in dxdt.__all__
