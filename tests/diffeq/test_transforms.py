"""torch.vmap, jvp, grad and their compositions over solves, against loops and differences."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import dxdt
from dxdt import Backsolve, Checkpointed, Direct, Event, Status
from dxdt.paths import Increments

D = torch.float64


class Net(nn.Module):
    def __init__(self, n: int = 3, width: int = 6):
        super().__init__()
        self.lower, self.upper = nn.Linear(n, width), nn.Linear(width, n)

    def forward(self, t, y, w=1.0):
        wave = torch.sin(2 * t).unsqueeze(-1)
        return w * self.upper(torch.tanh(self.lower(y))) - 0.3 * y + wave


def parts():
    torch.manual_seed(0)
    net = Net().double()
    y0 = torch.randn(5, 3, dtype=D)
    w = torch.linspace(0.5, 3.0, 5, dtype=D)
    return net, y0, w


GRID = dict(dt=0.1)
WAYS = {
    "fixed": dict(dt=0.1),
    "fixed, no last stage kept": dict(dt=0.1, solver=dxdt.Heun()),
    "adaptive": dict(controller=dxdt.PID(rtol=1e-7, atol=1e-9)),
}
each_way = pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)


def assert_close(got, want, tol=1e-12):
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tol * (1 + want.abs().max())


@each_way
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (1, 0)])
def test_vmap_is_a_loop(options, axes):
    """Over the state, over an argument, over both, along any axis, with and without gradients."""
    net, y0, w = parts()
    y0 = y0.T.contiguous() if axes[0] == 1 else y0 if axes[0] == 0 else y0[0]
    w = w if axes[1] == 0 else w[0]

    def run(y0, w):
        save = dxdt.Save(start=True, times=[0.33, 0.7], end=True)
        return dxdt.solve(dxdt.ODE(net), y0, (0.0, 1.0), args=(w,), save=save, **options).ys

    pick = [
        lambda i: y0.select(axes[0], i) if axes[0] is not None else y0,
        lambda i: w[i] if axes[1] == 0 else w,
    ]
    want = torch.stack([run(pick[0](i), pick[1](i)) for i in range(5)])
    assert_close(vmap(run, in_dims=axes)(y0, w), want)
    with torch.no_grad():
        assert_close(vmap(run, in_dims=axes)(y0, w), want)


@each_way
def test_vmap_over_parameters(options):
    """An ensemble of networks: parameters that the field captured are mapped."""
    nets = [Net().double() for _ in range(4)]
    stacked, _ = torch.func.stack_module_state(nets)
    y0 = torch.randn(3, dtype=D)

    def run(params):
        field = dxdt.ODE(lambda t, y: functional_call(nets[0], params, (t, y)))
        return dxdt.solve(field, y0, (0.0, 1.0), **options).y1

    want = torch.stack([dxdt.solve(dxdt.ODE(n), y0, (0.0, 1.0), **options).y1 for n in nets])
    got = vmap(run)(stacked)
    assert_close(got, want)
    wanted = list(stacked.values())
    each = torch.autograd.grad(got.sin().sum(), wanted)
    loop = torch.autograd.grad(want.sin().sum(), [p for n in nets for p in n.parameters()])
    for i, g in enumerate(each):
        assert_close(g, torch.stack(loop[i :: len(wanted)]), 1e-10)


def test_every_entry_has_its_own_steps():
    """A fast entry beside a slow one: counts as in a loop, also those of events."""
    w = torch.tensor([1.0, 30.0, 5.0], dtype=D)
    y0 = torch.tensor([1.0, 0.0], dtype=D)

    def run(w):
        field = dxdt.ODE(lambda t, y: w * torch.stack([-y[1], y[0]]))
        sol = dxdt.solve(field, y0, (0.0, 1.0), event=Event(lambda t, y: y[0] + 0.5))
        return sol.y1, sol.stats.accepted, sol.t1

    y1, accepted, t1 = vmap(run)(w)
    loop = [run(x) for x in w]
    assert accepted.tolist() == [int(x[1]) for x in loop]
    assert accepted[1] > accepted[0]
    assert_close(t1, torch.stack([x[2] for x in loop]))
    assert_close(y1, torch.stack([x[0] for x in loop]))
    assert (t1 - torch.tensor([1.0, 2 * torch.pi / 90, 2 * torch.pi / 15], dtype=D)).abs().max() < 1e-3


def test_statuses_and_failures():
    rate = torch.tensor([1.0, 2.0, 3.0], dtype=D)
    seen = []

    def run(rate, throw=None):
        sol = dxdt.solve(dxdt.ODE(lambda t, y: rate * y**2), torch.ones(1, dtype=D), (0.0, 0.4), throw=throw)
        seen.append(sol.status)
        return sol.y1

    with pytest.raises(dxdt.SolveError):
        vmap(run)(rate)
    y1 = vmap(lambda r: run(r, throw=False))(rate)
    assert [s is Status.SUCCESS for s in seen[-1]] == [True, True, False]
    assert torch.isnan(y1[2]).all() and torch.isfinite(y1[:2]).all()


@each_way
def test_vmap_over_per_sample_solves(options):
    """Samples inside entries: two axes of rows."""
    net, y0, w = parts()
    ys = torch.stack([y0, y0 + 1, y0 - 1])
    ends = torch.tensor([0.5, 1.0, 0.7, 1.3, 0.2], dtype=D)

    def run(y0, k):
        field = dxdt.ODE(lambda t, y, w: k * net(t, y, w.unsqueeze(-1)))
        sol = dxdt.solve(field, y0, (0.0, ends), args=(w,), per_sample=True, **options)
        return sol.ys, sol.ts

    k = torch.tensor([0.5, 1.0, 2.0], dtype=D)
    got, ts = vmap(run)(ys, k)
    want = torch.stack([run(a, b)[0] for a, b in zip(ys, k, strict=True)])
    assert_close(got, want)
    assert ts.shape == (3, 1, 5) and torch.equal(ts[0, 0], ends)


def test_nested_vmaps():
    net, y0, w = parts()

    def run(y0, w):
        return dxdt.solve(dxdt.ODE(net), y0, (0.0, 1.0), args=(w,)).y1

    got = vmap(lambda y: vmap(lambda w: run(y, w))(w))(y0)
    want = torch.stack([torch.stack([run(y, k) for k in w]) for y in y0])
    assert_close(got, want)


def test_trees_complex_values_and_spans_that_are_mapped():
    w = torch.linspace(0.5, 2.0, 4, dtype=D)
    t1 = torch.linspace(0.5, 3.0, 4, dtype=D)

    def run(w, t1):
        y0 = {"z": torch.ones(2, dtype=torch.complex128), "x": torch.ones((), dtype=D)}
        field = dxdt.ODE(lambda t, y: {"z": 1j * w * y["z"], "x": -w * y["x"]})
        save = dxdt.Save(end=True, fn=lambda t, y: {"z": y["z"] * w, "t": t})
        kept = dxdt.solve(field, y0, (0.0, t1), save=save).ys
        return dxdt.solve(field, y0, (0.0, t1), controller=dxdt.PID(rtol=1e-9)).y1, kept

    got, kept = vmap(run)(w, t1)
    assert (got["z"] - torch.exp(1j * w * t1)[:, None]).abs().max() < 1e-6
    assert (got["x"] - torch.exp(-w * t1)).abs().max() < 1e-6
    assert kept["z"].shape == (4, 1, 2) and torch.equal(kept["t"][:, 0], t1)


def test_nothing_mapped_inside_a_vmap():
    net, y0, _ = parts()
    out = vmap(lambda x: x + dxdt.solve(dxdt.ODE(net), y0[0], (0.0, 1.0)).y1)(torch.zeros(2, 3))
    want = dxdt.solve(dxdt.ODE(net), y0[0], (0.0, 1.0)).y1
    assert_close(out, torch.stack([want, want]))


# Derivatives by transforms


@each_way
def test_jacobians_agree(options):
    """Forward and reverse columns, and a loop of backward passes."""
    net, y0, w = parts()

    def run(y0):
        return dxdt.solve(dxdt.ODE(net), y0, (0.0, 1.0), args=(w[1],), **options).y1

    reverse, forward = jacrev(run)(y0[0]), jacfwd(run)(y0[0])
    leaf = y0[0].clone().requires_grad_()
    value = run(leaf)
    loop = torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in value])
    assert_close(reverse, loop)
    assert_close(forward, loop)


@each_way
def test_gradients_of_vmaps(options):
    """grad(vmap) and jvp(vmap): one transform outside of the mapped solve."""
    net, y0, w = parts()

    def losses(w):
        def run(y, k):
            return dxdt.solve(dxdt.ODE(net), y, (0.0, 1.0), args=(k,), **options).y1.sin().sum()

        return vmap(run)(y0, w)

    gradient = grad(lambda w: losses(w).sum())(w)
    _, tangent = jvp(losses, (w,), (torch.ones_like(w),))
    assert_close(tangent, gradient, 1e-10)
    step = 1e-6
    slope = (losses(w + step) - losses(w - step)) / (2 * step)
    assert (slope - gradient).abs().max() < 1e-7


def per_entry(y, k, net, **options):
    def loss(k):
        return dxdt.solve(dxdt.ODE(net), y, (0.0, 1.0), args=(k,), **options).y1.sin().sum()

    return grad(loss)(k)


def test_vmaps_of_gradients_over_known_steps():
    """vmap(grad): per-entry gradients, where no number need be read."""
    net, y0, w = parts()
    got = vmap(lambda y, k: per_entry(y, k, net, dt=0.1))(y0, w)
    want = torch.stack([per_entry(y, k, net, dt=0.1) for y, k in zip(y0, w, strict=True)])
    assert_close(got, want)


def test_vmaps_of_gradients_over_adaptive_steps_say_what_to_do():
    net, y0, w = parts()
    with pytest.raises(RuntimeError, match="put the vmap inside.*per_sample=True"):
        vmap(lambda y, k: per_entry(y, k, net))(y0, w)


@pytest.mark.parametrize(
    "options",
    [dict(dt=0.1), dict(controller=dxdt.PID(rtol=1e-9, atol=1e-11))],
    ids=["fixed", "adaptive"],
)
def test_hessian_vector_products(options):
    """Forward over reverse, reverse over reverse, and finite differences of gradients."""
    net, y0, _ = parts()
    y0, v = y0[0], torch.tensor([0.3, -1.0, 0.5], dtype=D)

    def loss(y0, rule=None):
        y1 = dxdt.solve(dxdt.ODE(net), y0, (0.0, 1.0), gradient=rule, **options).y1
        return (y1**3).sum()

    _, forward = jvp(grad(loss), (y0,), (v,))
    step = 1e-5
    ahead, behind = grad(loss)(y0 + step * v), grad(loss)(y0 - step * v)
    assert ((ahead - behind) / (2 * step) - forward).abs().max() < 1e-6
    for rule in (Direct(), Checkpointed(), Checkpointed(3)):
        leaf = y0.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(leaf, rule), leaf, create_graph=True)
        (hv,) = torch.autograd.grad(g, leaf, v)
        assert_close(hv, forward, 1e-10)
    assert_close(hessian(loss)(y0) @ v, forward, 1e-10)


def test_hessian_vector_products_of_parameters():
    net, y0, _ = parts()
    params = {k: p.detach() for k, p in net.named_parameters()}
    v = {k: torch.randn_like(p) for k, p in params.items()}

    def loss(params):
        field = dxdt.ODE(lambda t, y: functional_call(net, params, (t, y)))
        return dxdt.solve(field, y0[:2], (0.0, 1.0), dt=0.125).y1.square().sum()

    _, product = jvp(grad(loss), (params,), (v,))
    step = 1e-5
    ahead = grad(loss)({k: p + step * v[k] for k, p in params.items()})
    behind = grad(loss)({k: p - step * v[k] for k, p in params.items()})
    for k in params:
        assert ((ahead[k] - behind[k]) / (2 * step) - product[k]).abs().max() < 1e-6


def test_derivatives_of_events_by_transforms():
    """The time and state of an event: jvp, grad, jacrev, and backward through a vmap."""
    level = torch.tensor([0.2, 0.5, -0.3], dtype=D)

    def meet(level):
        sol = dxdt.solve(
            dxdt.ODE(lambda t, y: torch.stack([-y[1], y[0]])),
            torch.tensor([1.0, 0.0], dtype=D),
            (0.0, 3.0),
            event=Event(lambda t, y: y[0] - level),
            controller=dxdt.PID(rtol=1e-9, atol=1e-11),
        )
        return torch.stack([sol.t1, sol.y1[1]])

    # t* = arccos(level), sin t* = sqrt(1 - level^2)
    exact = torch.stack([-1 / (1 - level**2).sqrt(), -level / (1 - level**2).sqrt()], -1)
    for i in range(3):
        assert (jvp(meet, (level[i],), (torch.ones((), dtype=D),))[1] - exact[i]).abs().max() < 1e-7
        assert (jacrev(meet)(level[i]) - exact[i]).abs().max() < 1e-7
    leaf = level.clone().requires_grad_()
    values = vmap(meet)(leaf)
    for j in range(2):
        (g,) = torch.autograd.grad(values[:, j].sum(), leaf, retain_graph=True)
        assert (g - exact[:, j]).abs().max() < 1e-7
    with pytest.raises(RuntimeError, match="event inside torch.vmap.*per_sample=True"):
        grad(lambda x: vmap(meet)(x).sum())(level)


# What cannot be


@pytest.mark.parametrize("rule", [Checkpointed(), Checkpointed(4), Backsolve()], ids=repr)
def test_other_rules_are_refused_inside_transforms(rule):
    net, y0, _ = parts()

    def run(y0):
        return dxdt.solve(dxdt.ODE(net), y0, (0.0, 1.0), gradient=rule).y1.sum()

    for transformed in (grad(run), lambda y: jvp(run, (y,), (y,))):
        with pytest.raises(ValueError, match=r"invisible to torch.func.*Direct"):
            transformed(y0[0])
    with pytest.raises(ValueError, match=r"invisible to torch.func.*Direct"):
        vmap(run)(y0)


def test_what_cannot_be_mapped_is_named():
    net, y0, w = parts()

    def run(w, **options):
        return dxdt.solve(dxdt.ODE(net), y0[0], (0.0, 1.0), **options).y1

    with pytest.raises(ValueError, match="dt is mapped.*per_sample=True"):
        vmap(lambda w, y: dxdt.solve(dxdt.ODE(net), y, (0.0, 1.0), dt=w).y1)(w, y0)
    with pytest.raises(ValueError, match="save is mapped.*per_sample=True"):
        vmap(lambda w, y: dxdt.solve(dxdt.ODE(net), y, (0.0, 5.0), save=w[None]).y1)(w, y0)
    with pytest.raises(ValueError, match="dense path"):
        vmap(lambda y: dxdt.solve(dxdt.ODE(net), y, (0, 1), save=dxdt.Save(dense=True)).y1)(y0)
    sde = dxdt.SDE(lambda t, y: -y, lambda t, y: 0.1 * y)
    with pytest.raises(ValueError, match="SDE has noise.*per_sample=True"):
        vmap(
            lambda y: (
                dxdt.solve(
                    sde,
                    y,
                    (0, 1),
                    dt=0.1,
                    solver=dxdt.EulerMaruyama(),
                    driver=Increments(0),
                ).y1
            )
        )(y0)


def test_gradients_of_each_sample_as_the_message_writes_them():
    """vmap(grad(f)) cannot look at its values; the lines that its message shows give the same."""
    w, ys = torch.randn(3, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    def f(w, y):
        return dxdt.solve(dxdt.ODE(lambda t, y: torch.tanh(y @ w)), y, (0.0, 1.0), rtol=1e-8, atol=1e-10).y1.sum()

    with pytest.raises(RuntimeError, match=r"jacrev\(lambda w: vmap\(lambda y: f\(w, y\)\)\(ys\)\)\(w\)"):
        torch.vmap(torch.func.grad(f), (None, 0))(w, ys)
    each = torch.func.jacrev(lambda w: torch.vmap(lambda y: f(w, y))(ys))(w)
    alone = torch.stack([torch.func.grad(f)(w, y) for y in ys])
    torch.testing.assert_close(each, alone, rtol=1e-6, atol=1e-8)
    of_y = torch.func.grad(lambda ys: torch.vmap(lambda y: f(w, y))(ys).sum())(ys)
    torch.testing.assert_close(of_y, torch.stack([torch.func.grad(f, 1)(w, y) for y in ys]), rtol=1e-6, atol=1e-8)
