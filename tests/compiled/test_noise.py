"""Compiled noise has the bits of eager noise: generator and drivers, odd sizes, inside loops.

Each case is a process of its own: miscompiled code has been seen to corrupt the heap.
"""

import subprocess
import sys
import textwrap

import pytest

GENERATOR = """
    import torch
    from dxdt.ops.random import generator as random
    from torch._higher_order_ops.while_loop import while_loop

    def draw(seed, row, node, size):
        words = random.bits(seed, row.unsqueeze(-1), node, torch.arange(size))
        z = random.normals(seed, row, node, size, dtype=torch.float64)
        return words, z, random.normals(seed, row, node, size)

    def check(a, b):
        assert all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b)), a[0].shape

    node = torch.tensor(2**41 + 3)
    seeds = [random.seed_tensor(seed) for seed in (5, -6)]
    for rows, size in SIZES:
        options = {"cpp_wrapper": rows % 2 == 0}
        compiled = torch.compile(
            draw, fullgraph=True, dynamic=False, isolate_recompiles=True, options=options
        )
        for seed in seeds:
            row = torch.arange(rows)
            check(draw(seed, row, node, size), compiled(seed, row, node, size))

    def loop(seed, row):
        def body(k, total):
            return k + 1, total + random.normals(seed, row, k, 3, dtype=torch.float64)

        k = torch.zeros((), dtype=torch.int64)
        total = torch.zeros(len(row), 3, dtype=torch.float64)
        return while_loop(lambda k, total: k < 5, body, (k, total))[1]

    with torch.no_grad():
        row, seed = torch.arange(7), seeds[0]
        total = sum(random.normals(seed, row, k, 3, dtype=torch.float64) for k in range(5))
        if LOOP:
            check([total], [torch.compile(loop, fullgraph=True)(seed, row)])

    row = torch.arange(33)
    host = draw(seed, row, node, 9)
    random._on_host = lambda *arguments: False
    check(host, draw(seed, row, node, 9))
    print("same bits")
"""


DRIVERS = """
    import numpy as np
    import torch
    from torch._higher_order_ops.while_loop import while_loop
    from dxdt.paths import Brownian, Increments, SpaceTime

    def query(bound, t, dt, step):
        noise = bound.increment(t, dt, step)
        return (noise.W,) if noise.H is None else (noise.W, noise.H)

    def walk(bound, y, dt, steps):
        def body(k, t, y):
            return k + 1, t + dt, y + bound.increment(t, dt, k).W

        k, t = torch.zeros((), dtype=torch.int64), torch.zeros_like(dt)
        return while_loop(lambda k, t, y: k < steps, body, (k, t, y))[2]

    def compile(f):
        options = {"cpp_wrapper": True}
        return torch.compile(f, fullgraph=True, isolate_recompiles=True, options=options)

    rows, size = 33, 5
    for driver, levy in CASES:
        compiled, counter = compile(query), torch._dynamo.utils.counters
        for seed in (3, 4):
            bound = driver(seed, levy).bind(0.0, 1.0, rows, size, torch.float64)
            t, dt = np.linspace(0.0, 0.9, rows), np.linspace(0.1, -0.001, rows)
            dt[3] = 0.0
            ticks = torch.from_numpy(t), torch.from_numpy(dt), torch.tensor(70)
            for a, b in zip(query(bound, t, dt, 70), compiled(bound, *ticks)):
                assert torch.equal(a, b), (driver, levy)
        assert counter["stats"]["unique_graphs"] == 1
        counter.clear()
    with torch.no_grad():
        for driver in LOOPS:
            bound = driver(3).bind(0.0, 1.0, 7, 3, torch.float64)
            y, t, dt = torch.zeros(7, 3, dtype=torch.float64), np.zeros(7), np.full(7, 0.125)
            looped = compile(walk)(bound, y, torch.from_numpy(dt), torch.tensor(8))
            for k in range(8):
                y, t = y + bound.increment(t, dt, k).W, t + dt
            assert torch.equal(looped, y), driver
    print("same bits")
"""


def run_apart(code, **constants):
    for name, value in constants.items():
        code = code.replace(name, value)
    code = textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("same bits") == code.count("same bits"), done.stderr[-3000:]


def test_generator_and_drivers():
    """In one process: the generator comes last, for it is told at its end that it is not on the host."""
    run_apart(DRIVERS + GENERATOR, CASES="[(Brownian, SpaceTime)]", LOOPS="()", SIZES="[(33, 73)]", LOOP="False")


@pytest.mark.slow
def test_generator_at_odd_sizes():
    small = [(1, 1), (1, 3), (2, 2), (3, 5), (7, 9), (8, 8), (15, 17), (16, 31)]
    large = [(31, 33), (64, 63), (65, 127), (128, 128), (1023, 1), (1, 1025)]
    run_apart(GENERATOR, SIZES=str(small + large), LOOP="True")


@pytest.mark.slow
def test_all_drivers():
    cases = "[(d, l) for d in (Brownian, Increments) for l in (None, SpaceTime)]"
    run_apart(DRIVERS, CASES=cases, LOOPS="(Brownian, Increments)")
