"""A field that has no compiled form: the eager answer, and one warning that says why and where."""

import inspect
import math
import warnings
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch
from torch._inductor import exc

import dxdt
from dxdt import ODE, Euler, Heun

START = [1.0, 0.5, -0.2]


def branches(t, y):
    return -y if y.sum() > 0 else -2 * y


def prints(t, y):
    print("here")
    return -y


def counts(t, y):
    SEEN.append(1)
    return -y


def reads(t, y):
    return -y * float(y.norm())


def with_numpy(t, y):
    return torch.from_numpy(np.cos(y.detach().numpy()))


def mutates(t, y):
    y.mul_(0.5)
    return -y


def mutates_a_view(t, y):
    y[0] = 1.0
    return -y


def draws(t, y):
    return torch.randn_like(y)


def drops(t, y):
    return torch.nn.functional.dropout(y, 0.5)


def scripted(t, y):
    return LOOP(t, y)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return -x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return -2 * x * g


def custom(t, y):
    return Square.apply(y)


SEEN, MEMORY = [], torch.zeros(3)


def writes_elsewhere(t, y):
    MEMORY.zero_()  # to what it holds: nothing is remembered
    return -y


def answer(field, compile, grad, y0=START, dtype=torch.float32, **options):
    torch.manual_seed(5)
    y = torch.tensor(y0, dtype=dtype, requires_grad=grad)
    options = {"solver": Euler(), "dt": 0.4, "save": [0.0, 0.5, 1.0], **options}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        sol = dxdt.solve(ODE(field), y, (0.0, 1.0), compile=compile, **options)
        if grad:
            sol.ys.sum().backward()
    said = [str(w.message) for w in seen if "runs eager" in str(w.message)]
    return sol, y, said


def expect_eager(field, grad, words, **options):
    """The eager answer with one warning, and then without."""
    given, wanted = answer(field, True, grad, **options), answer(field, False, grad, **options)
    again = answer(field, True, grad, **options)
    for sol, y, _ in (given, again):
        assert torch.equal(sol.ys, wanted[0].ys) and torch.equal(y, wanted[1])
        assert sol.stats == wanted[0].stats
        if grad and wanted[1].grad is not None:
            assert torch.allclose(y.grad, wanted[1].grad, rtol=1e-6, atol=1e-6)
    assert len(given[2]) == 1 and words in given[2][0] and not again[2], given[2]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("field", "words"),
    [
        (branches, "in branches: return -y if y.sum() > 0"),
        (prints, "print"),
        (counts, "counts.SEEN"),
        (draws, "random numbers"),
        (drops, "random numbers"),
    ],
)
def test_untraceable_fields(field, words, grad, traced, capsys):
    expect_eager(field, grad, words)
    assert not traced


@pytest.mark.parametrize("field", [mutates, mutates_a_view])
def test_fields_that_write_into_the_state(field, traced):
    expect_eager(field, False, "writes into the state")
    assert not traced


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("field", "grad"),
    [
        *((reads, False), (custom, False), pytest.param(with_numpy, False, marks=SLOW)),
        *(pytest.param(f, g, marks=SLOW) for f, g in ((reads, True), (custom, True), (with_numpy, True))),
    ],
)
def test_odd_fields_that_can_be_traced(field, grad, traced):
    (a, y, said), (b, z, _) = answer(field, True, grad), answer(field, False, grad)
    assert torch.allclose(a.ys, b.ys, atol=1e-5)
    assert not said or grad
    assert not grad or torch.allclose(y.grad, z.grad, atol=1e-5)


def test_only_the_backward_pass_fails(traced):
    """The answer is compiled; its gradient is formed by the same function as a Python loop."""
    (a, y, said), (b, z, _) = (answer(writes_elsewhere, c, True) for c in (True, False))
    assert len(traced) == 1 and len(said) == 1 and "the backward pass" in said[0]
    assert torch.allclose(a.ys, b.ys) and torch.allclose(y.grad, z.grad)
    _, y, said = answer(writes_elsewhere, True, True)
    assert not said and torch.allclose(y.grad, z.grad)


def test_eager_backward_with_parameters_and_arguments(traced, monkeypatch):
    """The Python loop of the backward pass, with all that a gradient may be wanted for."""
    net, rate = torch.nn.Linear(3, 3), torch.tensor(0.5, requires_grad=True)

    def field(t, y, rate):
        return torch.tanh(net(y)) * rate

    def pull(compile):
        y = torch.ones(2, 3, requires_grad=True)
        options = dict(per_sample=True, solver=Heun(), save=dxdt.Save(dense=True, end=True))
        sol = dxdt.solve(ODE(field), y, (0.0, 1.0), args=(rate,), compile=compile, **options)
        loss = sol.ys.sum() + sol.path(torch.tensor(0.4)).square().sum()
        return torch.autograd.grad(loss, (y, rate, *net.parameters()))

    made = iter([lambda graph, inputs: graph.forward])

    def backend(graph, inputs):
        return next(made)(graph, inputs)

    monkeypatch.setattr(import_module("dxdt.compiler.compile"), "backend", backend)
    with pytest.warns(RuntimeWarning, match="the backward pass has no compiled form"):
        given = pull(True)
    for g, w in zip(given, pull(False), strict=True):
        assert torch.allclose(g, w, rtol=1e-4, atol=1e-5)


def failing_compiler(graph, inputs):
    raise exc.InvalidCxxCompiler


@pytest.mark.parametrize("grad", [pytest.param(False, marks=SLOW), True])
def test_no_compiler(grad, traced, monkeypatch):
    monkeypatch.setattr(import_module("dxdt.compiler.compile"), "backend", failing_compiler)
    expect_eager(lambda t, y: -y, grad, "no working C++ compiler: install")


@pytest.mark.parametrize("dense", [True, pytest.param(False, marks=SLOW)])
def test_a_later_chunk_fails(dense, traced, monkeypatch):
    """Nothing of the chunks before it is left in the answer."""
    made, save = [], dxdt.Save(dense=True) if dense else dxdt.Save(steps=True, every=7)

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward if len(made) == 1 else failing_compiler(graph, inputs)

    monkeypatch.setattr(import_module("dxdt.compiler.compile"), "backend", backend)
    a, b = (answer(lambda t, y: -y, c, False, dt=0.0035, save=save)[0] for c in (True, False))
    assert len(made) == 2 and a.stats == b.stats
    if dense:
        assert torch.equal(a.path(torch.tensor(0.7)), b.path(torch.tensor(0.7)))
    else:
        assert torch.equal(a.ys, b.ys) and torch.equal(a.ts, b.ts)


def decay(number):
    return lambda t, y, rate, more: more["shift"] - rate * number * y


def test_numbers_that_change_become_inputs(traced):
    """In a closure and in args: the first value is a constant of its program, all others share one."""
    for i in range(3):
        field, args = decay(1.0 + i / 10), (1.0 + i / 9, {"shift": i / 7})
        (a, y, warned), (b, z, _) = (answer(field, c, True, args=args) for c in (True, False))
        assert torch.allclose(a.ys, b.ys, atol=1e-6) and not warned
        assert torch.allclose(y.grad, z.grad, atol=1e-6)
    assert len(traced) == 4


def branching(number):
    return lambda t, y: -number * y if number > 1.05 else y * math.exp(number)


@torch._dynamo.config.patch(recompile_limit=3)
def test_numbers_that_must_stay_numbers(traced):
    """Compiled anew a few times, then eager with a warning that names the remedy."""
    said = []
    for i in range(6):
        (a, _, warned), (b, _, _) = (answer(branching(1.0 + i / 10), c, False) for c in (True, False))
        assert torch.allclose(a.ys, b.ys, atol=1e-6)
        said += warned
    assert len(said) == 1 and "as tensors in args=" in said[0]


class Callable:
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, t, y):
        return torch.sin(t) - self.rate * y


def test_other_callables(traced, strict):
    """Objects with ``__call__`` and partial functions; each sees its own values."""
    net = torch.nn.Linear(3, 3).requires_grad_(False)
    fields = [Callable(torch.tensor(0.5)), Callable(torch.tensor(0.7)), partial(scaled, net)]
    for field in fields:
        (a, _, _), (b, _, _) = (answer(field, c, False) for c in (True, False))
        assert torch.allclose(a.ys, b.ys, atol=1e-6)


def scaled(net, t, y, scale=1.0):
    return torch.tanh(net(y)) * scale


def test_other_dtypes_and_batches_between_calls(traced, strict):
    net = torch.nn.Linear(3, 3).requires_grad_(False)
    single, double = torch.float32, torch.float64
    for dtype, rows, per_sample in ((single, 2, False), (double, 2, False), (single, 1, True), (single, 2, False)):
        net.to(dtype)
        y, options = torch.ones(rows, 3, dtype=dtype), dict(solver=Euler(), dt=0.2, per_sample=per_sample)
        a, b = (dxdt.solve(ODE(lambda t, y: net(y)), y, (0.0, 1.0), compile=c, **options) for c in (True, False))
        assert a.ys.dtype == dtype and torch.allclose(a.ys, b.ys, rtol=1e-5)


def test_a_dtype_that_the_parameters_have_not(traced):
    """The error of the eager loop, whatever was compiled before."""
    net = torch.nn.Linear(3, 3).requires_grad_(False)
    answer(lambda t, y: net(y), True, False)
    for compile in (True, False):
        with pytest.raises(TypeError, match=r"weights in torch.float32 but the state is in torch.float64: give y0\.to"):
            answer(lambda t, y: net(y), compile, False, dtype=torch.float64)


def test_errors_of_the_field_are_its_own(traced):
    def wrong(t, y):
        raise ZeroDivisionError("of the user")

    with pytest.raises(ZeroDivisionError, match="of the user"):
        answer(wrong, True, False)
    with pytest.raises(ValueError, match="return the time derivative of each entry"):
        answer(lambda t, y: y[:2], True, False)


def test_transforms_run_eager(traced):
    y = torch.tensor(START, dtype=torch.float64)

    def end(y, compile=True):
        options = dict(solver=Euler(), dt=0.1, compile=compile)
        return dxdt.solve(ODE(lambda t, y: torch.sin(y)), y, (0.0, 1.0), **options).ys[-1]

    jacobian = torch.func.jacrev(lambda y: end(y, False))(y)
    with pytest.warns(RuntimeWarning, match="runs eager for .*: transforms"):
        assert torch.allclose(torch.func.jacrev(end)(y), jacobian)
    _, tangent = torch.func.jvp(end, (y,), (torch.ones_like(y),))
    assert torch.allclose(tangent, jacobian.sum(1))
    assert torch.allclose(torch.func.grad(lambda y: end(y).sum())(y), jacobian.sum(0))
    with pytest.warns(RuntimeWarning, match="a solve inside torch.vmap"):
        assert torch.allclose(torch.vmap(end)(torch.stack([y, 2 * y]))[0], end(y, False))
    assert not traced


def test_a_solve_inside_vmap_says_that_it_runs_eager(fresh):
    def decay(t, y):
        return -y

    def ends(compile):
        return torch.vmap(lambda y: dxdt.solve(ODE(decay), y, (0.0, 1.0), compile=compile).y1)

    with pytest.warns(RuntimeWarning, match="decay: a solve inside torch.vmap has no compiled form: make the mapped"):
        y1 = ends(True)(torch.ones(3, 2))
    assert torch.equal(y1, ends(False)(torch.ones(3, 2)))


def test_no_option_is_lost_inside_vmap(monkeypatch):
    """What is given to a solve inside ``torch.vmap`` reaches the solve on rows, whatever its name."""
    entry, seen = import_module("dxdt.diffeq.entry"), []
    front = entry.solve
    monkeypatch.setattr(entry, "solve", lambda **options: seen.append(options) or front(**options))
    torch.vmap(lambda y: front(ODE(lambda t, y: -y), y, (0.0, 1.0), max_steps=77).y1)(torch.ones(3, 2))
    (options,) = seen
    assert set(options) == set(inspect.signature(front).parameters) - {"unknown"} and options["max_steps"] == 77


class Growth:
    """An equation that keeps no callable."""

    fields = ()

    def drift(self, t, y, *args):
        return y


def test_an_equation_without_fields_is_named(fresh):
    with pytest.warns(RuntimeWarning, match="runs eager for Growth: "):
        dxdt.solve(Growth(), torch.ones(2), (0.0, 1.0), dt=0.5, compile=True)


def test_second_derivatives_are_refused(traced):
    """First ones may be formed with ``create_graph``; they may not be differentiated."""
    y = torch.tensor(START, requires_grad=True)
    sol = dxdt.solve(ODE(lambda t, y: torch.sin(y)), y, (0.0, 1.0), solver=Euler(), dt=0.1, compile=True)
    (g,) = torch.autograd.grad(sol.ys.sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives .* compile=False"):
        g.sum().backward()


def test_a_block_that_compiles(traced, strict):
    """The default inside the block, unless a solve or a block inside it says otherwise."""
    y, options = torch.tensor(START), dict(solver=Euler(), dt=0.5)
    with dxdt.compiling():
        dxdt.solve(ODE(lambda t, y: -y), y, (0.0, 1.0), **options, compile=False)
        with dxdt.compiling(False):
            dxdt.solve(ODE(lambda t, y: -y), y, (0.0, 1.0), **options)
        assert not traced
        dxdt.solve(ODE(lambda t, y: -y), y, (0.0, 1.0), **options)
    assert len(traced) == 1
    dxdt.solve(ODE(lambda t, y: -2 * y), y, (0.0, 1.0), **options)
    assert len(traced) == 1


def test_a_tensor_that_begins_to_require_a_gradient(traced):
    """A field like one that was looked at is not evaluated again: what its program reads is."""

    def pull(rate, **options):
        y = torch.tensor(START, requires_grad=True)
        options = {"solver": Euler(), "dt": 0.2, "compile": True, **options}
        sol = dxdt.solve(ODE(lambda t, y: -rate * y), y, (0.0, 1.0), **options)
        return torch.autograd.grad(sol.ys.sum(), (y, rate) if rate.requires_grad else y)

    pull(torch.tensor(0.5))
    wanted = pull(torch.tensor(0.5, requires_grad=True), compile=False)
    with pytest.raises(ValueError, match="requires a gradient but is not an input"):
        pull(torch.tensor(0.5, requires_grad=True), gradient=dxdt.Checkpointed())
    for words in ("requires a gradient but is not an input", None):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            given = pull(torch.tensor(0.5, requires_grad=True))
        assert [g.tolist() for g in given] == [w.tolist() for w in wanted]
        assert bool(seen) == bool(words) and all(words in str(w.message) for w in seen)
        pull(torch.tensor(0.5))


@pytest.mark.parametrize("held", ["state", pytest.param("argument", marks=SLOW)])
def test_an_input_that_the_field_begins_to_hold(held, traced):
    """Its gradient is more than that of the input: eager, though a field like it was compiled."""

    def pull(holds, compile):
        inputs = {"state": torch.tensor([START], requires_grad=True), "argument": torch.ones(1, 3, requires_grad=True)}
        inside = inputs[held] if holds else torch.ones(1, 3)
        y, rate = inputs.values()
        options = {"solver": Euler(), "dt": 0.2, "compile": compile, "args": (rate,)}
        sol = dxdt.solve(ODE(lambda t, y, rate: inside - rate * y), y, (0.0, 1.0), **options)
        return torch.autograd.grad(sol.ys.sum(), (y, rate))

    pull(False, True)
    assert len(traced) == 2
    with pytest.warns(RuntimeWarning, match="runs eager"):
        given = pull(True, True)
    for g, w in zip(given, pull(True, False), strict=True):
        assert torch.equal(g, w)


class Scores(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 3)

    def forward(self, x, told):
        return torch.tanh(self.inner(x)) * torch.cos(told).reshape(told.shape + (1,) * (x.ndim - told.ndim))


def test_samplers_say_what_to_compile(fresh):
    """The network is where their time goes, and compiled by itself it answers as before."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    net, start = Scores(), torch.linspace(-1, 1, 6).reshape(2, 3)
    process, grid = dxdt.diffusion.VP(), torch.linspace(1, 0.1, 5, dtype=torch.float64)
    options = dict(solver=dxdt.Exponential(order=2), controller=dxdt.Grid(grid))

    def sampled(network, compile):
        equation = dxdt.diffusion.reverse(dxdt.diffusion.Denoiser(network, process))
        with torch.no_grad():
            return dxdt.solve(equation, start, (1.0, 0.1), compile=compile, **options).ys

    with pytest.warns(RuntimeWarning, match=r"compile the network that it asks, as torch.compile\(network\)"):
        wanted = sampled(net, True)
    found = sampled(torch.compile(net, backend=backend, fullgraph=True, dynamic=False), False)
    assert len(graphs) == 1
    assert torch.equal(found, wanted)
