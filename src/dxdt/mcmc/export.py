"""Chains for arviz, of both major versions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dxdt.mcmc.chain import Chains
from dxdt.ops.optional import require

__all__ = ["to_arviz"]


def to_arviz(chains: Chains | Tensor, name: str = "x", **quantities: Tensor) -> Any:
    """Return chains as arviz holds them: `InferenceData` before its version 1, a `DataTree` from then on.

    Args:
        chains: what `run_chains` kept, or draws (chains, draws, *shape); acceptance and energy errors go with them.
        name: of the draws.
        quantities: further ones by name, (chains, draws, *shape).

    Raises:
        ImportError: arviz is not installed.
        ValueError: a quantity has other chains or draws.
    """
    arviz = require("arviz", "mcmc")
    x, statistics = (chains.x, chains.statistics) if isinstance(chains, Chains) else (chains, {})
    posterior = {name: x, **quantities}
    for what, values in posterior.items():
        if values.ndim < 2 or values.shape[:2] != x.shape[:2]:
            raise ValueError(
                f"to_arviz: {what} of shape {tuple(values.shape)} does not belong to {x.shape[0]} chains of "
                f"{x.shape[1]} draws; give (chains, draws, *shape)."
            )
    names = {"acceptance": "acceptance_rate"}
    groups = {"posterior": {k: v.detach().cpu().numpy() for k, v in posterior.items()}}
    if statistics:
        groups["sample_stats"] = {names.get(k, k): v.detach().cpu().numpy() for k, v in statistics.items()}
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.from_dict(**groups)
    return arviz.from_dict(groups)
