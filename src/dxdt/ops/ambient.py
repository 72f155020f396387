"""Torch's state around a computation: what its operations depend on besides their arguments."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch

__all__ = ["Ambient"]


class Ambient(NamedTuple):
    """Torch's state in one place.

    Attributes:
        autocast: for each kind of device, whether operations cast to a lower precision, and to which.
        cached: whether they keep the casts of parameters.
        dtype, device: of new tensors.
        deterministic, warns: whether operations without a deterministic form are refused, or warned of only.
    """

    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    cached: bool
    dtype: torch.dtype
    device: torch.device
    deterministic: bool
    warns: bool

    @classmethod
    def now(cls, kind: str) -> Ambient:
        """The state for computations on the CPU and on a kind of device."""
        kinds = ("cpu",) if kind == "cpu" else ("cpu", kind)
        return cls(
            tuple([(k, torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds]),
            torch.is_autocast_cache_enabled(),
            torch.get_default_dtype(),
            torch.empty(0).device,  # a tenth of the cost of torch.get_default_device
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )

    @contextmanager
    def held(self) -> Generator[None]:
        """A block in which it holds again, and in which a graph can be made."""
        now = Ambient.now(self.autocast[-1][0])
        inference = torch.is_inference_mode_enabled()
        if now == self and not inference:
            yield
            return
        with ExitStack() as stack:
            if inference:
                stack.enter_context(torch.inference_mode(False))
            for kind, enabled, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled, self.cached))
            if now.device != self.device:
                stack.enter_context(self.device)
            stack.callback(torch.set_default_dtype, now.dtype)
            torch.set_default_dtype(self.dtype)
            stack.callback(torch.use_deterministic_algorithms, now.deterministic, warn_only=now.warns)
            torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warns)
            yield
