"""Balls that bounce: events with a reset, each ball at times of its own, and how high they were dropped from.

Run: python examples/bounce.py
"""

import torch

import dxdt


def main() -> float:
    """Return the largest error of heights found by Newton steps through the time of the third bounce."""
    true = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    fall = dxdt.ODE(lambda t, y: torch.stack([y[:, 1], torch.full_like(y[:, 1], -9.81)], -1))
    ground = dxdt.Event(
        lambda t, y: y[:, 0],
        reset=lambda t, y: torch.stack([0 * y[:, 0], -0.8 * y[:, 1]], -1),
        direction=-1,
    )

    def bounces(heights: torch.Tensor) -> torch.Tensor:
        y0 = torch.stack([heights, 0 * heights], -1)
        found = dxdt.solve(fall, y0, (0.0, 4.5), event=ground, per_sample=True, rtol=1e-8, atol=1e-8)
        assert found.events is not None
        return found.events[2]

    seen = bounces(true)
    heights = torch.full((3,), 3.0, dtype=torch.float64, requires_grad=True)
    for _ in range(6):
        apart = bounces(heights) - seen
        (slope,) = torch.autograd.grad(apart.sum(), heights)
        with torch.no_grad():
            heights -= apart / slope
    return (heights.detach() - true).abs().max().item()


if __name__ == "__main__":
    print(f"largest error of a height: {main():.1e}")
