"""Bad input: one sentence that names the object, the cause and the remedy, before work starts."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dxdt
from dxdt import ODE, PID, Save, solve
from dxdt.diffeq import mixed_clocks

NAN, INF = float("nan"), float("inf")
ONE = torch.ones(3)


def decay(t, y):
    return -y


def never(t, y, *args):
    raise AssertionError("the field was called although the input is known to be bad")


# Known before work starts: the field is never called.
BEFORE = {
    "no t": (dict(t=None), ValueError, "t: give the span"),
    "one time": (dict(t=(0.0,)), ValueError, "t has 1 times: give"),
    "no times": (dict(t=[]), ValueError, "t has 0 times: give"),
    "a number for t": (dict(t=1.0), TypeError, "t is"),
    "words for t": (dict(t=("a", "b")), TypeError, "t has.*not real"),
    "non-monotone": (dict(t=[0.0, 0.5, 0.2]), ValueError, "t lists times.*sort them"),
    "times that come back": (dict(t=[0.0, 0.5, 0.0]), ValueError, "not in one direction"),
    "inner times twice": (dict(t=[0.0, 0.5, 1.0], save=[0.3], dt=0.1), ValueError, "t lists 3 times.*save=times"),
    "span beyond float32": (dict(t=(0.0, 1e300), dt=1e300), ValueError, "t spans 1e.300, more than float32 holds"),
    "misspelt option": (dict(atoll=1e-6), TypeError, "solve has no option atoll: did you mean atol?"),
    "torchdiffeq's option": (dict(method="rk4"), TypeError, "no option method: it is called solver here"),
    "tolerance beside a controller": (dict(rtol=1e-3, controller=PID()), ValueError, "put rtol into the controller"),
    "tolerance without an estimate": (dict(rtol=1e-3, solver=dxdt.Euler()), ValueError, "no error estimate"),
    "negative tolerance": (dict(rtol=-1e-3), ValueError, "a tolerance is a finite number"),
    "NaN end": (dict(t=(0.0, NAN)), ValueError, "t has times that are not finite"),
    "infinite end": (dict(t=(0.0, INF)), ValueError, "no event ends the solve"),
    "ends per sample, joint": (dict(t=(0.0, torch.ones(3))), ValueError, "per_sample=True"),
    "ends of another size": (
        dict(t=(0.0, torch.ones(2)), per_sample=True),
        ValueError,
        "each of the 3 samples",
    ),
    "t of rank 3": (
        dict(t=torch.rand(2, 3, 1), per_sample=True),
        ValueError,
        "t has an end of shape",
    ),
    "complex t": (dict(t=torch.tensor([0.0j, 1.0])), TypeError, "t has.*not real: give"),
    "no values": (dict(y0=torch.empty(3, device="meta")), ValueError, "y0 is on the meta device"),
    "NaN in y0": (
        dict(y0=torch.tensor([1.0, NAN])),
        ValueError,
        "y0 has values that are not finite",
    ),
    "inf in y0": (
        dict(y0=torch.tensor([1.0, INF])),
        ValueError,
        "y0 has values that are not finite",
    ),
    "integer y0": (
        dict(y0=torch.ones(2, dtype=torch.int64)),
        TypeError,
        r"y0 is torch.int64: convert",
    ),
    "boolean y0": (dict(y0=torch.ones(2) > 0), TypeError, "y0 is torch.bool: convert"),
    "number y0": (dict(y0=1.0), TypeError, "y0 has a leaf of type float: give tensors"),
    "array y0": (dict(y0=np.ones(3)), TypeError, "y0 has a leaf of type ndarray: give tensors"),
    "None y0": (dict(y0=None), TypeError, "y0 has a leaf of type NoneType"),
    "empty tree y0": (dict(y0={}), ValueError, "y0 has no tensors"),
    "no batch axis": (
        dict(y0=torch.tensor(1.0), per_sample=True),
        ValueError,
        "without a batch axis",
    ),
    "batches differ": (
        dict(y0=(torch.ones(2, 1), torch.ones(3, 1)), per_sample=True),
        ValueError,
        r"batch sizes \[2, 3\]",
    ),
    "mixed devices": (
        dict(y0=(torch.ones(2), torch.ones(2, device="meta"))),
        ValueError,
        "several devices .*move",
    ),
    "negative rtol": (dict(controller=lambda: PID(rtol=-1.0)), ValueError, r"PID\(rtol=-1.0\)"),
    "zero tolerances": (dict(controller=lambda: PID(0.0, 0.0)), ValueError, "PID.*rtol.*0"),
    "tolerance tree": (
        dict(controller=lambda: PID(rtol={"a": 1e-3, "b": 1e-3})),
        ValueError,
        "PID.rtol has 2 leaves but the state has 1",
    ),
    "tolerance shape": (
        dict(controller=lambda: PID(rtol=torch.full((2,), 1e-3))),
        ValueError,
        "PID.rtol of shape",
    ),
    "zero dt": (dict(dt=0.0), ValueError, "dt is 0.0: give"),
    "NaN dt": (dict(dt=NAN), ValueError, "dt is nan: give"),
    "dt of another size": (dict(dt=torch.ones(2), per_sample=True), ValueError, "dt is"),
    "word dt": (dict(dt="small"), TypeError, "dt has 'small', which is not real"),
    "no dt, no estimate": (
        dict(solver=dxdt.RK4()),
        ValueError,
        "RK4 has no error estimate.*give dt",
    ),
    "PID without estimate": (
        dict(solver=dxdt.Euler(), controller=PID, dt=0.1),
        ValueError,
        "PID adapts steps to an error estimate that Euler does not make",
    ),
    "solver class": (
        dict(solver=dxdt.Tsit5),
        TypeError,
        r"solver is the class Tsit5: .*Tsit5\(\)",
    ),
    "controller class": (
        dict(controller=lambda: PID),
        TypeError,
        r"controller is the class PID: .*PID\(\)",
    ),
    "gradient class": (
        dict(gradient=dxdt.Checkpointed),
        TypeError,
        r"gradient is the class Checkpointed: .*Checkpointed\(\)",
    ),
    "equation class": (dict(equation=ODE), TypeError, "equation is the class ODE: give"),
    "gradient word": (dict(gradient="adjoint"), TypeError, "gradient is the word 'adjoint': give"),
    "words to save": (dict(save=["a"]), TypeError, "save has .* not real: give"),
    "solver word": (dict(solver="dopri5"), TypeError, "solver is the word 'dopri5': give an object, as dxdt.Dopri5"),
    "stochastic solver": (
        dict(solver=dxdt.EulerMaruyama(), dt=0.1),
        ValueError,
        "stochastic equations: use",
    ),
    "SDE, ODE solver": (
        dict(equation=dxdt.SDE(never, never), dt=0.1, solver=dxdt.Tsit5()),
        ValueError,
        "Tsit5 solves equations without noise: use",
    ),
    "bare function": (dict(equation=never), TypeError, r"wrap your field as dxdt.ODE\(field\)"),
    "max_steps": (dict(max_steps=0), ValueError, "max_steps is 0: give at least 1"),
    "NaN save": (dict(save=[0.5, NAN]), ValueError, "save has times that are not finite"),
    "no save times": (dict(save=[]), ValueError, "save has shape"),
    "save of rank 2, joint": (dict(save=torch.ones(2, 3)), ValueError, "save has shape"),
    "save unsorted": (
        dict(save=[0.5, 0.2]),
        ValueError,
        "save has times that are not in the direction",
    ),
    "save forwards, solve backwards": (
        dict(t=(1.0, 0.0), save=[0.2, 0.5]),
        ValueError,
        "save has times that are not in the direction",
    ),
    "save outside": (dict(save=[0.5, 1.5]), ValueError, "save has times outside the span"),
    "nothing to save": (dict(save=Save), ValueError, r"Save\(\) keeps nothing"),
    "save times and steps": (
        dict(save=lambda: Save(steps=True, times=[0.5])),
        ValueError,
        r"Save\(steps=True, times=...\)",
    ),
    "save every 0": (dict(save=lambda: Save(steps=True, every=0)), ValueError, "every=0"),
    "save every without steps": (
        dict(save=lambda: Save(end=True, every=2)),
        ValueError,
        "add steps=True",
    ),
    "grid that does not begin at t0": (
        dict(controller=lambda: dxdt.Grid([0.5, 1.0])),
        ValueError,
        "Grid",
    ),
    "grid that does not end at t1": (
        dict(controller=lambda: dxdt.Grid([0.0, 0.5])),
        ValueError,
        "Grid",
    ),
    "grid of another batch": (
        dict(controller=lambda: dxdt.Grid(torch.tensor([[0.0, 0.0], [1.0, 1.0]])), per_sample=True),
        ValueError,
        "Grid",
    ),
    "Constant without dt": (
        dict(controller=dxdt.Constant),
        ValueError,
        r"Constant\(\) has no step size",
    ),
}


def call(options, equation=None):
    """solve with one thing wrong; classes and functions among the options make the bad value."""
    options = dict(options)
    for name in ("controller", "save"):
        if callable(options.get(name)) and not isinstance(options[name], Save):
            options[name] = options[name]()
    options = dict(equation=equation or ODE(never), y0=ONE, t=(0.0, 1.0)) | options
    return solve(options.pop("equation"), options.pop("y0"), options.pop("t"), **options)


def is_one_sentence(message: str) -> bool:
    """One line, without a traceback in it, that offers a remedy after a colon or semicolon."""
    return "\n" not in message and len(message) < 400 and (":" in message or ";" in message)


@pytest.mark.parametrize("case", BEFORE)
def test_bad_input_is_refused_before_work_starts(case):
    options, kind, words = BEFORE[case]
    with pytest.raises(kind, match=words) as caught:
        call(options)
    assert is_one_sentence(str(caught.value)), str(caught.value)


# What only the field's first value can show.
FIELDS = {
    "shape": (
        lambda t, y: y[:2],
        ValueError,
        r"field's value has shape \(2,\) but the state has \(3,\)",
    ),
    "broadcast shape": (lambda t, y: y[:1], ValueError, "field's value has shape"),
    "structure": (lambda t, y: (y,), TypeError, "field's value has structure"),
    "None": (lambda t, y: None, TypeError, "field's value"),
    "number": (lambda t, y: 0.0, TypeError, "leaf of type float: return tensors"),
    "wider dtype": (
        lambda t, y: y.double(),
        TypeError,
        "field's value is torch.float64.*lose precision",
    ),
    "complex": (
        lambda t, y: y + 0j,
        TypeError,
        "field's value is torch.complex64.*make y0 complex",
    ),
    "integers": (
        lambda t, y: y.long(),
        TypeError,
        "field's value is torch.int64: return floating",
    ),
    "device": (lambda t, y: y.to("meta"), ValueError, "field's value is on meta .*move"),
}


@pytest.mark.parametrize("per_sample", [False, True], ids=["joint", "per-sample"])
@pytest.mark.parametrize("case", FIELDS)
def test_bad_fields_are_refused_at_their_first_value(case, per_sample):
    field, kind, words = FIELDS[case]
    calls = []

    def counted(t, y):
        calls.append(1)
        return field(t, y)

    with pytest.raises(kind, match=words) as caught:
        solve(ODE(counted), ONE, (0.0, 1.0), per_sample=per_sample)
    assert len(calls) == 1
    message = str(caught.value)
    assert is_one_sentence(message), message


def test_tree_fields():
    y0 = {"a": torch.ones(2), "b": torch.ones(2)}
    for bad in (
        {"a": torch.ones(2)},
        {"a": torch.ones(2), "c": torch.ones(2)},
        [torch.ones(2)] * 2,
    ):
        with pytest.raises(TypeError, match="field's value has structure.*one value for each leaf") as e:
            solve(ODE(lambda t, y, bad=bad: bad), y0, (0, 1))
        assert is_one_sentence(str(e.value)), str(e.value)


def test_a_narrower_field_is_promoted():
    sol = solve(ODE(lambda t, y: -y.half()), ONE, (0, 1))
    assert sol.y1.dtype == torch.float32 and (sol.y1 - 0.3679).abs().max() < 1e-2


def test_an_error_inside_the_field_is_the_users_own():
    class Mine(Exception):
        pass

    def field(t, y):
        raise Mine

    with pytest.raises(Mine):
        solve(ODE(field), ONE, (0, 1))


def test_exceeding_max_steps():
    message = r"the solve took max_steps attempted steps.*raise max_steps.*at t = .*step 5\)"
    with pytest.raises(dxdt.SolveError, match=message):
        solve(ODE(decay), ONE, (0.0, 1.0), dt=0.1, max_steps=5)


def test_every_status_is_a_sentence():
    for status in dxdt.Status:
        assert re.match(r"[a-z].*[a-z]$", status.value) and "\n" not in status.value


@pytest.mark.parametrize("throw", [None, True, False])
def test_a_span_so_short_that_nothing_can_happen(throw):
    t1 = math.nextafter(1.0, 2.0)
    sol = solve(ODE(decay), ONE.double(), (1.0, t1), throw=throw)
    assert sol.status.ok and float(sol.t1) == t1


# Anything at all: a clear error or a correct solution.

finite = st.floats(-3, 3, allow_nan=False, width=32)
odd = st.one_of(finite, st.sampled_from([0.0, 1e-300, 1e300, -1e300, NAN, INF, -INF, 1e-7, 40.0]))
dtypes = st.sampled_from(
    [
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
    ]
    + [torch.int32, torch.bool]
)
shapes = st.lists(st.integers(0, 3), max_size=3)
solvers = st.sampled_from([None, dxdt.Euler(), dxdt.RK4(), dxdt.Heun(), dxdt.Bosh3(), dxdt.Dopri5()])


@st.composite
def states(draw):
    def leaf():
        x = torch.full(tuple(draw(shapes)), draw(finite))
        return x.to(draw(dtypes))

    kind = draw(st.integers(0, 4))
    return leaf() if kind < 3 else {"a": leaf(), "b": (leaf(),)} if kind == 3 else [leaf()]


@st.composite
def problems(draw):
    y0 = draw(states())
    times = draw(st.lists(odd, min_size=0, max_size=4))
    if draw(st.booleans()):
        times = sorted(set(times), key=lambda x: (math.isnan(x), x))
    options = dict(
        per_sample=draw(st.booleans()),
        solver=draw(solvers),
        dt=draw(st.one_of(st.none(), odd)),
        save=draw(st.one_of(st.none(), st.lists(odd, max_size=3))),
        max_steps=draw(st.sampled_from([0, 1, 7, 60])),
        throw=draw(st.sampled_from([None, True, False])),
    )
    tolerances = draw(st.one_of(st.none(), st.tuples(odd, odd)))
    return y0, times, options, tolerances


@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
@given(problems())
def test_any_input_gives_a_clear_error_or_a_correct_solution(problem):
    y0, times, options, tolerances = problem
    calls = []

    def field(t, y):
        calls.append(1)
        assert len(calls) < 5000
        return torch.utils._pytree.tree_map(lambda x: -x, y)

    try:
        if tolerances is not None:
            options["controller"] = PID(*tolerances)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            sol = solve(ODE(field), y0, times, **options)
    except (TypeError, ValueError) as error:
        assert is_one_sentence(str(error)), str(error)
        assert not calls
        return
    except dxdt.SolveError as error:
        sol = error.solution
        assert options["throw"] or not options["per_sample"]
    leaves0, leaves = (torch.utils._pytree.tree_leaves(x) for x in (y0, sol.ys))
    last = sol.reached[-1]
    for a, b in zip(leaves0, leaves, strict=True):
        assert b.dtype == a.dtype and b.shape[1:] == a.shape
        value = b[-1].to(torch.complex128)
        mask = last.reshape(last.shape + (1,) * (value.dim() - last.dim()))
        assert torch.isnan(value[~mask.expand(value.shape)]).all()
        assert torch.isfinite(value[mask.expand(value.shape)].abs()).all() or options["dt"]
    # Correct where the method is accurate: tight tolerances, moderate spans.
    accurate = tolerances is not None and max(tolerances) <= 1e-3 and options["solver"] is None
    if accurate and abs(times[-1] - times[0]) < 10 and len(times) == 2:
        for a, b in zip(leaves0, leaves, strict=True):
            factor = torch.exp(times[0] - sol.ts[-1])
            while factor.dim() < a.dim() and factor.dim():
                factor = factor.unsqueeze(-1)
            error = (b[-1].to(torch.complex128) - a.to(torch.complex128) * factor).abs()
            scale = 1e-2 * (1 + a.abs().max().double()) * (1 + factor.abs().max())
            assert (error[~error.isnan()] <= scale).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(1, 4),
    st.lists(st.tuples(finite, finite), min_size=4, max_size=4),
    st.booleans(),
    st.integers(0, 3),
)
def test_spans_of_ones_own(batch, spans, fixed, saves):
    """Per-sample spans of either direction and any length, with their own save times."""
    t0 = torch.tensor([s[0] for s in spans[:batch]], dtype=torch.float64)
    t1 = torch.tensor([s[1] for s in spans[:batch]], dtype=torch.float64)
    times = t0 + torch.linspace(0, 1, saves + 2, dtype=torch.float64)[:, None] * (t1 - t0)
    y0 = torch.ones(batch, 2, dtype=torch.float64)
    options = dict(dt=0.2) if fixed else dict(controller=PID(1e-6, 1e-6))
    sol = solve(ODE(decay), y0, (t0, t1), save=times, per_sample=True, **options)
    assert sol.reached.all() and sol.ok.all()
    exact = torch.exp(t0 - sol.ts)
    assert ((sol.ys[..., 0] - exact).abs() <= 1e-3 * exact).all()


RIGHT = {
    "clocks beside features": lambda t, y: t[:, None] * y,
    "no time at all": lambda t, y: -y,
    "one field for each row": lambda t, y: torch.sin(t)[:, None] + y @ torch.eye(3, dtype=y.dtype),
    "a tree": lambda t, y: {"a": t[:, None] * y["a"], "b": t * y["b"]},
}
MIXED = {
    "product": lambda t, y: t * y,
    "shift": lambda t, y: torch.sin(t) - y,
    "in a part of a tree": lambda t, y: {"a": t * y["a"], "b": t * y["b"]},
}


def rows(name):
    y0 = torch.linspace(1, 2, 9, dtype=torch.float64).reshape(3, 3)
    return {"a": y0, "b": y0[:, 0]} if "tree" in name else y0


@pytest.mark.parametrize("name", MIXED)
def test_a_field_that_mixes_the_clocks_of_rows_is_told_once(name):
    calls = []

    def field(t, y):
        calls.append(1)
        return MIXED[name](t, y)

    mixed_clocks._looked.clear()
    with pytest.warns(RuntimeWarning, match=r"field mixes the clocks of its 3 rows.*t\[:, None\] \* y"):
        sol = solve(ODE(field), rows(name), (0.0, torch.ones(3)), per_sample=True)
    assert sol.stats.evaluations == len(calls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(ODE(field), rows(name), (0.0, torch.ones(3)), per_sample=True)


@pytest.mark.parametrize("name", RIGHT)
def test_a_field_that_keeps_clocks_apart_is_not_told(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(ODE(RIGHT[name]), rows(name), (0.0, torch.ones(3)), per_sample=True)
