"""Sizes that follow from one number B known at run time only.

Each is a + b B with whole a and b. While a program is formed, a large prime stands for B, so that sizes
are plain integers: n = a + b P tells a and b, and arithmetic on sizes is arithmetic on integers. In the
text B takes the prime's place again. A program is formed with two primes; where a number was taken for
something that it is not, the two texts differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from dxdt.compiler.native.buffers import Unsupported

__all__ = ["PRIMES", "WIDE", "Extent", "Extents", "Room", "carried"]

PRIMES = 2147483647, 2147483629
"""What stands for B."""

WIDE = "(B + 15) / 16 * 16"
"""The batch rounded up, in C++."""

# The largest a and b.
_MOST = 1 << 30
_WHOLE = re.compile(r"(?<![\w.])(\d{10,})(LL)?(?![\w.])")


@dataclass(frozen=True)
class Extent:
    """The size a + b B."""

    a: int
    b: int

    def __call__(self, batch: int) -> int:
        return self.a + self.b * batch

    @property
    def most(self) -> int:
        """A bound of it in multiples of B."""
        return max(self.a, 0) + self.b


@dataclass(frozen=True)
class Room:
    """Bytes of memory: a fixed number, and so many for each item of a batch that is rounded up (see ``WIDE``)."""

    fixed: int
    each: int = 0

    def __call__(self, batch: int) -> int:
        return self.fixed + self.each * ((batch + 15) // 16 * 16)


@dataclass
class Extents:
    """The sizes of one program.

    Attributes:
        symbol: B in the traced graph, or None where all sizes are known.
        prime: what stands for it.
        hint: B when the program was traced.
    """

    symbol: Any
    prime: int
    hint: int = 0
    _known: dict[Any, int | None] = field(default_factory=dict)

    def size(self, n: Any) -> int | None:
        """A size of the graph; None where it is known at run time only and does not follow from B."""
        if isinstance(n, int):
            return n
        expression = n.node.shape_env.replace(n.node.expr)
        if expression not in self._known:
            number = expression.subs({self.symbol: self.prime}) if self.symbol is not None else expression
            self._known[expression] = int(number) if number.is_Integer else None
        return self._known[expression]

    def value(self, value: Any) -> Any:
        """A tensor of the graph with its sizes, if all are known."""
        if isinstance(value, (list, tuple)):
            return [self.value(x) for x in value]
        if not isinstance(value, Tensor) or all(isinstance(n, int) for n in value.shape):
            return value
        sizes = [self.size(n) for n in value.shape]
        if None in sizes:
            return value
        return torch.empty(sizes, dtype=value.dtype, device="meta")  # pyright: ignore[reportArgumentType,reportCallIssue]

    def open(self, n: int) -> bool:
        """Whether a size follows from B."""
        return self.symbol is not None and abs(n) > self.prime // 2

    def extent(self, n: int) -> Extent:
        """A size as a + b B.

        Raises:
            Unsupported: it is not of this form.
        """
        b = (n + self.prime // 2) // self.prime
        a = n - b * self.prime
        if abs(a) > _MOST or not 0 < b < _MOST:
            raise Unsupported("a size that is not linear in the batch")
        return Extent(a, b)

    def made(self, shape: tuple[int, ...]) -> tuple[int | Extent, ...]:
        """The shape of a tensor that a program makes."""
        return tuple(self.extent(n) if self.open(n) else n for n in shape)

    def at_hint(self, n: int) -> int:
        """A size when the program was traced."""
        return self.extent(n)(self.hint) if self.open(n) else n

    def written(self, text: str) -> str:
        """A text with B in the place of its prime."""
        if self.symbol is None:
            return text

        def sized(found: re.Match[str]) -> str:
            e = self.extent(int(found[1]))
            return f"({e.a} + {e.b} * B)" if e.a else f"({e.b} * B)" if e.b != 1 else "B"

        return _WHOLE.sub(sized, text)


def carried(graph: fx.GraphModule, loops: set[Any]) -> tuple[Any, int]:
    """The symbol that sizes of what a loop carries follow from and its value in the trace, or None and 0.

    Raises:
        Unsupported: there are several.
    """
    symbols, hints = set[Any](), dict[Any, int]()
    for node in graph.graph.nodes:
        if node.target not in loops:
            continue
        state = node.args[2] if len(node.args) > 2 else [v for k, v in node.kwargs.items() if k.startswith("carried_")]
        for held in state:
            for n in held.meta["val"].shape:
                if not isinstance(n, int):
                    env = n.node.shape_env
                    symbols |= env.replace(n.node.expr).free_symbols
                    hints |= {s: int(env.backed_var_to_val.get(s, 0)) for s in symbols}
    if len(symbols) > 1:
        raise Unsupported("sizes that follow from several numbers")
    symbol = next(iter(symbols), None)
    return symbol, hints.get(symbol, 0)
