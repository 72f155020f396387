"""Fit a neural ODE to pieces of a noisy spiral, and follow it for as long again.

Run: python examples/spiral.py [STEPS]
"""

import sys

import torch

import dxdt


def main(steps: int = 120) -> float:
    """Return the root mean square error of a forecast over twice the span of a piece."""
    torch.manual_seed(0)
    turn = torch.tensor([[-0.1, 1.0], [-1.0, -0.1]])
    times = torch.linspace(0, 6, 61)
    truth = dxdt.solve(dxdt.ODE(lambda t, y: y @ turn.T), torch.tensor([2.0, 0.0]), times, rtol=1e-6, atol=1e-6).ys
    data = truth + 0.02 * torch.randn_like(truth)
    net = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
    model = dxdt.NeuralODE(lambda t, y: net(y), per_sample=True)
    starts = torch.arange(0, 50)
    ts = torch.stack([times[k : k + 11] for k in starts], 1)
    wanted = torch.stack([data[k : k + 11] for k in starts], 1)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = (model(wanted[0], ts) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        forecast = dxdt.NeuralODE(lambda t, y: net(y))(data[0], times[:21])
    return (forecast - truth[:21]).square().mean().sqrt().item()


if __name__ == "__main__":
    print(f"error of the forecast: {main(*map(int, sys.argv[1:])):.3f}")
