"""Processor time of the way back, eager and compiled, interleaved in one process (``pytest -m slow -s``)."""

import time
from statistics import median

import pytest
import torch
from torch import nn

import dxdt
from dxdt import Backsolve, McCallumFoster, Reversible, ReversibleHeun
from dxdt.compat.torchdiffeq import odeint_adjoint

TIMES = torch.linspace(0, 2, 20)
PID = dict(controller=dxdt.PID(1e-5, 1e-6))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lower, self.upper = nn.Linear(2, 50), nn.Linear(50, 2)

    def forward(self, t, y):
        return self.upper(torch.tanh(self.lower(y)))


def by_solve(**options):
    def ys(net, y0):
        return dxdt.solve(dxdt.ODE(net), y0, (0.0, 2.0), **options).ys

    return ys


def by_adjoint(net, y0):
    return odeint_adjoint(net, y0, TIMES, rtol=1e-5, atol=1e-6)


def shaken(net, y0):
    equation = dxdt.SDE(net, lambda t, y: 0.1 * torch.cos(y), dxdt.Diagonal(), dxdt.Stratonovich())
    options = dict(solver=ReversibleHeun(), dt=0.02, driver=dxdt.Increments(1), gradient=Reversible())
    return dxdt.solve(equation, y0, (0.0, 2.0), **options).ys


CASES = {
    "`Backsolve()`, 20 save times": by_solve(save=TIMES, gradient=Backsolve(), **PID),
    "`Backsolve()`, per sample": by_solve(save=TIMES, gradient=Backsolve(), per_sample=True, **PID),
    "`Backsolve()`, the end": by_solve(gradient=Backsolve(), **PID),
    "`odeint_adjoint`, 20 times": by_adjoint,
    "`Reversible()`, `ReversibleHeun`, 100 steps": by_solve(solver=ReversibleHeun(), dt=0.02, gradient=Reversible()),
    "`Reversible()`, `McCallumFoster(Bosh3())`": by_solve(
        solver=McCallumFoster(dxdt.Bosh3()), gradient=Reversible(), **PID
    ),
    "`Reversible()`, `ReversibleHeun`, noise, 100 steps": shaken,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_times_of_the_way_back(name, strict):
    torch.manual_seed(0)
    print("\n| way back | batch | eager, ms | compiled, ms | ratio |")
    for batch in (1, 64):
        net, y0, spent = Net(), torch.randn(batch, 2), {False: list[float](), True: list[float]()}
        for i in range(9):
            for compile in (False, True):
                with dxdt.compiling(compile):
                    loss = CASES[name](net, y0).square().sum()
                begin = time.process_time()
                loss.backward()
                if i > 1:
                    spent[compile].append(1e3 * (time.process_time() - begin))
        eager, compiled = (median(spent[x]) for x in (False, True))
        print(f"| {name} | {batch} | {eager:.1f} | {compiled:.2f} | {eager / compiled:.1f} |", flush=True)
        assert compiled < eager
