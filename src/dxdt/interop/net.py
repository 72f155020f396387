"""Networks as denoisers ask for them: called with (x, told, labels), answering with x's channels."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.interop.keys import KeyMap, matched
from dxdt.nn import Architecture, MagnitudeArchitecture, MagnitudeUNet, ScoreUNet

__all__ = ["MeanPart", "build", "buildable", "filled", "quiet", "refused_by_name"]

M = TypeVar("M", bound=nn.Module)


def quiet(net: M) -> M:
    """Return a network or denoiser ready for use: no dropout, no gradients for its weights."""
    return net.eval().requires_grad_(False)


def build(architecture: Architecture | MagnitudeArchitecture) -> ScoreUNet | MagnitudeUNet:
    """Return the network with weights that are about to be replaced, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        return ScoreUNet(architecture) if isinstance(architecture, Architecture) else MagnitudeUNet(architecture)


def filled(
    architecture: Architecture | MagnitudeArchitecture,
    keys: Callable[[], KeyMap],
    found: Mapping[str, Tensor],
    where: str,
) -> ScoreUNet | MagnitudeUNet:
    """Return the network with the tensors of a file, which are compared before any memory is taken for it.

    Args:
        architecture: what the file says about the network.
        keys: makes our names and their sources.
        found: the tensors of the file.
        where: what to call the file in errors.

    Raises:
        ValueError: no network can be built so, or the tensors are not its.
    """
    parts = len(architecture.widths) * architecture.blocks
    if parts > len(found):
        raise ValueError(
            f"{where}: {len(architecture.widths)} levels of {architecture.blocks} blocks are described, and there are "
            f"only {len(found)} tensors; the file is damaged, or of another network."
        )
    ready = matched(buildable(architecture, where), keys(), found, where=where)
    net = build(architecture)
    net.load_state_dict(ready)
    return net


def buildable(architecture: Architecture | MagnitudeArchitecture, where: str) -> dict[str, Tensor]:
    """Return the names and shapes of a network's tensors, for which no memory is taken.

    Raises:
        ValueError: no network can be built so.
    """
    with refused_by_name(where), torch.device("meta"):
        return build(architecture).state_dict()


@contextmanager
def refused_by_name(where: str) -> Generator[None]:
    """Turn what a network's construction fails with into one sentence that names the file.

    Raises:
        ValueError: the construction failed.
    """
    try:
        yield
    except Exception as error:  # constructors raise what they like: UnboundLocalError, RuntimeError, ...
        message = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{where}: no network can be built from its configuration ({type(error).__name__}: {message}); "
            "fetch the file again, or mend it."
        ) from error


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
