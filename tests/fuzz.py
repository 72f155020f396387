"""Random solves, each a function of one number: fields of many operations, states, spans, saves and gradients.

A field is a chain of operations on the last axis of a leaf, so that rows stay apart, and ends in a bounded
slope. ``python tests/fuzz.py 0 100`` compares seeds 0 to 99 with the eager loop and prints what differs.
"""

from __future__ import annotations

import sys
import time
import traceback
import warnings
from collections import namedtuple
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import dxdt
from dxdt.ops.tree import leaves, tree_map
from fuzz_pieces import COARSE, NATIVE, OTHERS, Dice

__all__ = ["Case", "compare", "make"]

F32, F64 = torch.float32, torch.float64
Pair = namedtuple("Pair", ["a", "b"])


class Field(nn.Module):
    """A chain of pieces; the slope of leaf x is ``tanh(chain(x) scaled to x's width) - x / 2``, in x's dtype."""

    def __init__(self, dice: Dice, n: int, others: float, smooth: bool) -> None:
        super().__init__()
        pieces = []
        probe, t = dice.normal(2, n), torch.tensor([[0.3], [0.6]], dtype=F64)
        for _ in range(dice.randint(1, 5)):
            build = dice.choice(OTHERS if dice.chance(others) else NATIVE)
            piece = build(dice, probe.shape[-1])
            if smooth and (piece.leaps or piece.name in COARSE):
                continue
            with torch.no_grad():
                probe = piece(probe, t)
            pieces.append(piece)
        self.pieces, self.n = nn.ModuleList(pieces), n

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        pull = sum((leaf.double().reshape(-1)[:1].sum() for leaf in leaves(args) if isinstance(leaf, Tensor)), 0.0)
        return tree_map(lambda x: self.slope(t, x, pull), y)

    def slope(self, t: Tensor, x: Tensor, pull: Any) -> Tensor:
        if x.dtype.is_complex:
            return 1j * x * torch.cos(t.reshape(t.shape + (1,) * (x.dim() - t.dim()))) - 0.1 * x.abs() * x + pull
        thin = x.dim() == t.dim()
        wide = (x.unsqueeze(-1) if thin else x).to(F64)
        t = t.double().reshape(t.shape + (1,) * (wide.dim() - t.dim()))
        z = wide if wide.shape[-1] == self.n else wide.mean(-1, keepdim=True).expand(*wide.shape[:-1], self.n)
        for piece in self.pieces:
            z = piece(z, t)
        out = torch.tanh(z.mean(-1, keepdim=True) + 0.3 * z[..., :1] + 0.1 * pull) * (1 + wide.cos()) - wide / 2
        return (out.squeeze(-1) if thin else out).to(x.dtype)


@dataclass
class Case:
    """What one seed stands for; ``wanted`` are the tensors whose gradients are compared."""

    name: str
    field: Field
    y0: Any
    t: Any
    options: dict[str, Any]
    wanted: list[Tensor]
    adaptive: bool
    rough: float


SOLVERS = [
    *(dxdt.Euler, dxdt.Midpoint, dxdt.Heun, dxdt.Ralston, dxdt.Bosh3) * 3,
    *(dxdt.RK4, dxdt.Dopri5, dxdt.Tsit5, dxdt.Vern7, dxdt.Dopri8, dxdt.LowStorage3, dxdt.LowStorage4, dxdt.EES25),
]
"""Cheap ones more often: the compiler's work grows with the stages."""
FORWARD_ONLY = [dxdt.ReversibleHeun, dxdt.AsynchronousLeapfrog]


def make(seed: int) -> Case:
    """The case of a seed."""
    dice = Dice(seed)
    per_sample, graded = dice.chance(0.5), dice.chance(0.5)
    lead = (dice.choice([1, 2, 3, 4, 7]),) if per_sample else dice.choice([(), (), (2,), (3,)])
    n = dice.choice([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33])
    dtype = dice.choices([F64, F32, torch.bfloat16], [8, 2, 1])[0]
    y0, shape = state(dice, lead, n, dtype)
    rough = 1e-9 if dtype is F64 and shape != "mixed" else 3e-4 if dtype is not torch.bfloat16 else 0.05
    args = tuple(argument(dice) for _ in range(dice.choice([0, 0, 1, 2])))
    span, t = spans(dice, lead if per_sample else ())
    kinds = SOLVERS if graded else SOLVERS + FORWARD_ONLY
    solver = dice.choice(kinds)()
    options: dict[str, Any] = {"solver": solver, "per_sample": per_sample, "args": args}
    adaptive = control(dice, options, solver, t)
    field = Field(dice, n, dice.choice([0.0, 0.0, 0.0, 0.3]), adaptive or rough > 1e-8)
    if any(p.name in COARSE for p in field.pieces):
        rough = max(rough, 0.02)
    saves(dice, options, t)
    wanted = list[Tensor]()
    if graded:
        wanted = [x.requires_grad_() for x in leaves(y0) if x.numel()] if dice.chance(0.7) else []
        wanted += [a.requires_grad_() for a in leaves(args) if isinstance(a, Tensor) and a.is_floating_point()]
        params = list(field.parameters())
        wanted += params
        if dice.chance(0.3) and not isinstance(options.get("controller"), dxdt.Grid):
            ends = [torch.as_tensor(x, dtype=F64).clone().requires_grad_() for x in t]
            t, wanted = tuple(ends), [*wanted, *ends]
    if not wanted:
        field.requires_grad_(False)
    told = {k: v for k, v in options.items() if k not in ("args",)}
    what = f"{shape} {lead} n={n} {dtype} {span} {' > '.join(p.name for p in field.pieces)} {told} args={args}"
    return Case(f"{seed}: {what}", field, y0, t, options, wanted, adaptive, rough)


def state(dice: Dice, lead: tuple[int, ...], n: int, dtype: torch.dtype) -> tuple[Any, str]:
    make = lambda *shape, kind=dtype: dice.normal(*shape).to(kind)  # noqa: E731
    shape = dice.choices(["plain", "dict", "tuple", "list", "named", "thin", "mixed", "complex"], [6] + [1] * 7)[0]
    x = make(*lead, n)
    if dice.chance(0.15) and lead:
        x = make(n, *lead).movedim(0, -1)  # not contiguous
    elif dice.chance(0.1):
        x = make(*lead, 1).expand(*lead, n)
    wide = torch.complex128 if dtype is F64 else torch.complex64
    return {
        "plain": lambda: x,
        "dict": lambda: {"b": x, "a": make(*lead, 2)},
        "tuple": lambda: (x, x),
        "list": lambda: [x, make(*lead, 3, n)],
        "named": lambda: Pair(make(*lead), {"inner": x}),
        "thin": lambda: make(*lead),
        "mixed": lambda: (x, make(*lead, 2, kind=F32), make(*lead, n, kind=F64)),
        "complex": lambda: (x, torch.complex(make(*lead, 2, kind=F64), make(*lead, 2, kind=F64)).to(wide)),
    }[shape](), shape


def argument(dice: Dice) -> Any:
    return dice.choice(
        [
            dice.normal(),
            dice.normal(3),
            dice.normal(2).float(),
            torch.tensor([2, 3]),
            torch.tensor(True),
            {"k": dice.normal(1), "n": 3, "s": "name"},
            0.5,
            (dice.normal(2), None),
        ]
    )


def spans(dice: Dice, rows: tuple[int, ...]) -> tuple[str, tuple[Any, Any]]:
    kind = dice.choices(["up", "down", "tiny", "own", "offset"], [4, 3, 1, 4, 1])[0]
    if kind == "own" and rows:
        start = torch.tensor([dice.uniform(-1, 1) for _ in range(rows[0])], dtype=F64)
        length = torch.tensor([dice.choice([-1.0, 1.0, 0.5, -0.3]) for _ in range(rows[0])], dtype=F64)
        return kind, (start, start + length)
    ends = {"down": (1.0, -0.2), "tiny": (0.3, 0.3 + 1e-9), "offset": (100.0, 101.0)}
    return kind, ends.get(kind, (0.0, 1.0))


def control(dice: Dice, options: dict[str, Any], solver: Any, t: Any) -> bool:
    """Enter how steps are chosen; returns whether errors are measured."""
    if solver.facts.error_order is None or solver.facts.known_grid or dice.chance(0.5):
        start, end = (torch.as_tensor(x, dtype=F64) for x in t)
        kind = dice.choice(["dt", "constant", "grid"])
        if kind == "grid" and bool((start != end).all()):
            steps = torch.linspace(0, 1, dice.choice([2, 5, 12]), dtype=F64) ** 1.5
            table = start + (end - start) * (steps[:, None] if start.dim() or end.dim() else steps)
            table[-1] = end
            options["controller"] = dxdt.Grid(table)
        else:
            size = max(float((end - start).abs().max()), 1e-3) * dice.choice([0.083, 0.25, 0.4])
            options.update({"dt": size} if kind == "dt" else {"controller": dxdt.Constant(size)})
        return False
    rtol = dice.choice([1e-3, 1e-5])
    kinds = [dxdt.PID, dxdt.PI, dxdt.I]
    controller = dice.choice(kinds)(rtol=rtol, atol=rtol * 1e-1)
    if dice.chance(0.2):
        controller = dxdt.Clip(controller, steps=[0.31, 0.7], jumps=[0.4])
    options["controller"] = controller
    if dice.chance(0.3):
        options["dt"] = 0.05
    return True


def saves(dice: Dice, options: dict[str, Any], t: Any) -> None:
    start, end = (torch.as_tensor(x, dtype=F64) for x in t)
    place = torch.tensor(
        sorted({0.0, *(round(dice.random(), 3) for _ in range(dice.choice([1, 3, 9]))), 1.0}), dtype=F64
    )
    if start.dim() or end.dim():
        place = place[:, None]
    times = start + (end - start) * place
    times[-1] = end
    kind = dice.choice(["end", "times", "every", "dense", "fn", "all"])
    fn = lambda t, y, *args: tree_map(lambda x: x * 2, y)  # noqa: E731
    options["save"] = {
        "end": None,
        "times": times,
        "every": dxdt.Save(steps=True, every=dice.choice([1, 2, 3])),
        "dense": dxdt.Save(dense=True, end=True),
        "fn": dxdt.Save(start=True, end=True, fn=fn),
        "all": dxdt.Save(start=True, times=times, end=True, dense=True),
    }[kind]


def asked(t: Tensor) -> Tensor:
    """A time for each row as ``path`` takes it."""
    return t[None] if t.dim() else t


def answer(case: Case, compile: bool) -> tuple[Any, list[Tensor], list[Any], list[str]]:
    """The solution, its values, their gradients and what was warned of."""
    options = dict(case.options)
    if not compile and case.wanted:
        options["gradient"] = dxdt.Direct()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        sol = dxdt.solve(dxdt.ODE(case.field), case.y0, case.t, compile=compile, throw=False, **options)
        values = [*([] if sol.ys is None else leaves(sol.ys)), *([] if sol.y1 is None else leaves(sol.y1))]
        if sol.path is not None:
            start, end = (torch.as_tensor(x).detach() for x in case.t)
            values += [x for p in (0.0, 0.37, 0.9) for x in leaves(sol.path(asked(start + (end - start) * p)))]
        values += [torch.as_tensor(sol.t1)]
        grads = list[Any]()
        if case.wanted:
            weights = torch.Generator().manual_seed(1)
            loss = torch.zeros((), dtype=F64)
            for v in values:
                if v.requires_grad:
                    part = torch.view_as_real(v) if v.dtype.is_complex else v
                    w = torch.randn(part.shape, generator=weights, dtype=F64)
                    loss = loss + (torch.where(part.isnan(), 0, part).double() * w).sum()
            if loss.requires_grad:
                grads = list(torch.autograd.grad(loss, case.wanted, allow_unused=True))
    return sol, [v.detach() for v in values], grads, [f"{w.category.__name__}: {w.message}" for w in seen]


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference in units of the largest value."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if not a.numel():
        return 0.0
    if not a.dtype.is_complex:
        a, b = a.double(), b.double()
    if not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    scale = max(1.0, float(b.abs().nan_to_num(posinf=1.0).max()))
    same = a == b
    return float(torch.where(same, 0, (a - b).abs()).nan_to_num(nan=0.0, posinf=1e300).max()) / scale


def compare(case: Case) -> tuple[list[str], list[str]]:
    """What differs between the compiled and the eager answer, and why it ran eager, if it did."""
    try:
        sol, values, grads, said = answer(case, False)
    except Exception as error:
        try:
            answer(case, True)
        except Exception as other:
            return ([] if type(other) is type(error) else [f"{other!r} not {error!r}"]), [f"no case: {error!r:.200}"]
        return [f"an answer, where the eager loop has {error!r:.300}"], []
    got, found, pulled, told = answer(case, True)
    wrong = []
    tolerance = case.rough
    for name in ("steps", "accepted", "rejected"):
        one, other = (torch.as_tensor(getattr(x.stats, name)) for x in (got, sol))
        if not torch.equal(one, other):
            wrong.append(f"{name}: {one.tolist()} not {other.tolist()}")
            tolerance = max(tolerance, 1e-2 if case.adaptive else tolerance)
    if got.stats.evaluations != sol.stats.evaluations:
        wrong.append(f"evaluations: {got.stats.evaluations} not {sol.stats.evaluations}")
    if got.status != sol.status:
        wrong.append(f"status: {got.status} not {sol.status}")
    if len(values) != len(found):
        wrong.append("another number of values")
    for i, (a, b) in enumerate(zip(found, values, strict=False)):
        if not gap(a, b) <= tolerance:
            wrong.append(f"value {i}: off by {gap(a, b):.2e}")
    for i, (a, b) in enumerate(zip(pulled, grads, strict=True)):
        none = [x is None or not x.abs().max() > 0 for x in (a, b)]
        if all(none):
            continue
        if any(none) and not (none[0] and gap(torch.zeros_like(b), b) < tolerance):
            wrong.append(f"gradient {i}: {a} not {b}")
        elif not any(none) and not gap(a, b) <= 30 * max(tolerance, torch.finfo(b.dtype).eps * 10):
            wrong.append(f"gradient {i} of {tuple(b.shape)}: off by {gap(a, b):.2e}")
    eager = [x for x in told if "runs eager" in x]
    odd = [x for x in told if x not in said and "runs eager" not in x and "torch.jit" not in x]
    return wrong + [f"warned: {x}" for x in odd], eager


def main(first: int, last: int) -> None:
    """Compare seeds, one line for each that differs."""
    engine, fallback = (
        import_module("dxdt.diffeq.programs.engine"),
        import_module("dxdt.diffeq.programs.eager_fallback"),
    )
    torch.set_num_threads(1)
    bad = eager = 0
    for seed in range(first, last):
        case = make(seed)
        engine._program.clear()
        torch._dynamo.reset()
        fallback._warned.clear()
        begun = time.process_time()
        try:
            wrong, why = compare(case)
        except Exception as error:
            trace = traceback.format_exc().splitlines()
            wrong, why = [f"{type(error).__name__}: {str(error)[:500]}", *trace[-6:]], []
        bad, eager = bad + bool(wrong), eager + bool(why)
        spent = time.process_time() - begun
        if wrong or why:
            print("WRONG" if wrong else "EAGER", case.name, *wrong, *why, sep="\n    ", flush=True)
        print(f"{seed} {spent:.1f}s", file=sys.stderr, flush=True)
    print(f"seeds {first} to {last - 1}: {bad} differ, {eager} ran eager")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
