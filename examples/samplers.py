"""Samplers of a known law, side by side: how far the samples are from it at ten and at forty evaluations.

Run: python examples/samplers.py
"""

import torch

import dxdt
from dxdt import diffusion
from dxdt.models import energy_distance


def main(count: int = 2000) -> dict[str, dict[int, float]]:
    """Return the energy distance from exact draws, for each sampler and number of evaluations."""
    law = diffusion.gaussian_oracle(diffusion.VP(), torch.tensor([1.0, -1.0]), torch.tensor(0.4))
    exact = torch.tensor([1.0, -1.0]) + 0.4 * torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    solvers = {"DDIM": diffusion.DDIM(), "second order": dxdt.Exponential(2), "third order": dxdt.Exponential(3)}
    found: dict[str, dict[int, float]] = {name: {} for name in (*solvers, "ancestral")}
    for steps in (10, 40):
        for name, solver in solvers.items():
            x = diffusion.sample(law, (count, 2), steps=steps, solver=solver, seed=1)
            found[name][steps] = float(energy_distance(x, exact))
        x = diffusion.sample(law, (count, 2), steps=steps, solver=diffusion.Ancestral(), seed=1)
        found["ancestral"][steps] = float(energy_distance(x, exact))
    return found


if __name__ == "__main__":
    for name, distances in main().items():
        print(f"{name:14}" + "   ".join(f"{n} evaluations {value:.4f}" for n, value in distances.items()))
