"""`dxdt bench brownian`: queries of Brownian motion, one after the other, by every library installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from benchmarks.measure import CLOCKS, set_threads, time_together
from benchmarks.report import Line, missing, show, table_of, write
from dxdt.compiler.backend import backend
from dxdt.ops.optional import require
from dxdt.paths import Brownian, Increments

__all__ = ["bench_brownian"]

Walk: TypeAlias = Callable[[], Any]
"""Asks for all increments in turn, and gives their sum of squares for each entry."""
_SPAN = 1.0


@dataclass(frozen=True)
class _Source:
    package: str
    make: Callable[[tuple[int, int], int], Walk]
    most: int = 1 << 30


def bench_brownian(
    size: tuple[str, ...] = ("32x4", "128x5", "512x256"),
    queries: int = 100,
    repeats: int = 7,
    clock: Literal["wall", "cpu"] = "wall",
    out: Path | None = None,
) -> list[Line]:
    """Time sequential queries of Brownian increments by dxdt and its peers, side by side.

    The error is that of the quadratic variation, (1/T) sum W^2 - 1 averaged over all entries.
    Ratios are to torchsde's BrownianInterval; another line has it told the step that will be asked
    for. Trees are left out for sizes beyond 8192 numbers, where they take minutes.

    Args:
        size: rows x components.
        queries: increments over [0, 1], in order.
        repeats: repetitions, taken in turns.
        clock: wall, or cpu where others use the machine too.
        out: folder for results.json, table.txt and times.png.
    """
    set_threads(1)
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    lines, tables = list[Line](), []
    for name in size:
        rows, components = (int(x) for x in name.split("x"))
        walks = _walks((rows, components), queries, console)
        errors = {n: abs(float(np.mean(np.asarray(walk()))) / _SPAN - 1) for n, walk in walks.items()}
        times = time_together(walks, repeats, clock=CLOCKS[clock])
        base = times.get("torchsde", next(iter(times.values()))).median
        found = [
            Line(name, rows * components, "queries", n, t, queries, errors[n], t.median / base)
            for n, t in times.items()
        ]
        tables.append(table_of(f"{queries} increments of size {name}", found))
        show(console, tables[-1:])
        lines += found
    if out is not None:
        write(out, lines, tables, {"queries": queries, "repeats": repeats, "clock": clock})
        console.print(f"wrote {out}/results.json, table.txt and times.png")
    return lines


def _walks(shape: tuple[int, int], queries: int, console: Console) -> dict[str, Walk]:
    walks = dict[str, Walk]()
    for name, source in _SOURCES.items():
        if shape[0] * shape[1] > source.most:
            continue
        line = missing(source.package, name)
        if line is None:
            walks[name] = source.make(shape, queries)
        else:
            console.print(line, style="yellow", highlight=False)
    return walks


def _eager(driver: Any) -> Callable[[tuple[int, int], int], Walk]:
    def make(shape: tuple[int, int], queries: int) -> Walk:
        t, dt = np.arange(queries) * (_SPAN / queries), np.full(1, _SPAN / queries)

        def walk() -> Tensor:
            bound, total = driver.bind(0.0, _SPAN, *shape, torch.float32), torch.zeros(shape)
            for k in range(queries):
                w = bound.increment(t[k : k + 1], dt, k).W
                total.addcmul_(w, w)
            return total

        return walk

    return make


def _looped(bound: Any, total: Tensor, dt: Tensor, count: Tensor) -> Tensor:
    def body(k: Tensor, t: Tensor, total: Tensor) -> tuple[Tensor, ...]:
        w = bound.increment(t, dt, k.expand(len(t))).W
        return k + 1, t + dt, total + w * w

    k = torch.zeros((), dtype=torch.int64)
    return while_loop(lambda k, t, total: k < count, body, (k, torch.zeros_like(dt), total.clone()))[2]


def _compiled(driver: Any) -> Callable[[tuple[int, int], int], Walk]:
    def make(shape: tuple[int, int], queries: int) -> Walk:
        # As compiled solves do: native code, and torch's compiler for paths that draw in the loop.
        options: dict[str, Any] = {"backend": backend, "isolate_recompiles": True}
        loop = torch.compile(_looped, fullgraph=True, dynamic=False, **options)
        dt, count = torch.full((shape[0],), _SPAN / queries, dtype=torch.float64), torch.tensor(queries)

        def walk() -> Tensor:
            with torch.no_grad():
                bound = driver.bind(0.0, _SPAN, *shape, torch.float32)
                bound = bound.ahead(0, queries) if hasattr(bound, "ahead") else bound
                return loop(bound, torch.zeros(shape), dt, count)

        return walk

    return make


def _torchsde(told: bool) -> Callable[[tuple[int, int], int], Walk]:
    def make(shape: tuple[int, int], queries: int) -> Walk:
        interval, dt = require("torchsde", "bench").BrownianInterval, _SPAN / queries

        def walk() -> Tensor:
            path = interval(0.0, _SPAN, size=shape, dt=dt if told else None, entropy=0)
            total = torch.zeros(shape)
            for k in range(queries):
                w = path(k * dt, min((k + 1) * dt, _SPAN))
                total.addcmul_(w, w)
            return total

        return walk

    return make


def _diffrax(shape: tuple[int, int], queries: int) -> Walk:
    jax, diffrax = require("jax", "bench"), require("diffrax", "bench")
    np_ = jax.numpy
    like = jax.ShapeDtypeStruct(shape, np_.float32)

    def all_of(key: Any) -> Any:
        path = diffrax.VirtualBrownianTree(0.0, _SPAN, tol=_SPAN / queries / 2, shape=like, key=key)
        dt = _SPAN / queries

        def body(k: Any, total: Any) -> Any:
            w = path.evaluate(k * dt, np_.minimum((k + 1) * dt, _SPAN))
            return total + w * w

        return jax.lax.fori_loop(0, queries, body, np_.zeros(shape, np_.float32))

    call, key = jax.jit(all_of), jax.random.PRNGKey(0)
    return lambda: call(key).block_until_ready()


_SOURCES = {
    "dxdt Increments": _Source("dxdt", _eager(Increments(0))),
    "dxdt Increments, compiled": _Source("dxdt", _compiled(Increments(0))),
    "dxdt Brownian": _Source("dxdt", _eager(Brownian(0)), 8192),
    "dxdt Brownian, compiled": _Source("dxdt", _compiled(Brownian(0)), 8192),
    "torchsde": _Source("torchsde", _torchsde(told=False)),
    "torchsde, told dt": _Source("torchsde", _torchsde(told=True)),
    "diffrax": _Source("diffrax", _diffrax, 8192),
}
