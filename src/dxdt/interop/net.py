"""Networks as denoisers ask for them: called with (x, told, labels), answering with x's channels."""

from __future__ import annotations

from typing import TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.nn import Architecture, MagnitudeArchitecture, MagnitudeUNet, ScoreUNet

__all__ = ["MeanPart", "build", "build_magnitude", "quiet"]


M = TypeVar("M", bound=nn.Module)


def quiet(net: M) -> M:
    """Return a network or denoiser ready for use: no dropout, no gradients for its weights."""
    return net.eval().requires_grad_(False)


def build(architecture: Architecture) -> ScoreUNet:
    """Return the network with weights that are about to be replaced, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        return ScoreUNet(architecture)


def build_magnitude(architecture: MagnitudeArchitecture) -> MagnitudeUNet:
    """Return the network with weights that are about to be replaced, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        return MagnitudeUNet(architecture)


@final
class MeanPart(nn.Module):
    """The first channels of a network that answers a mean and a variance.

    Args:
        net: answers (batch, more channels, *shape).

    Source: Nichol and Dhariwal, "Improved denoising diffusion probabilistic models" (2021), section 3.1.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, x: Float[Tensor, "batch n *shape"], t: Tensor, labels: Tensor | None = None
    ) -> Float[Tensor, "batch n *shape"]:
        """Return as many channels as `x` has."""
        return self.net(x, t, labels)[:, : x.shape[1]]
