"""Operations of random fields: each acts on the last axis of a leaf, so that rows stay apart."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["COARSE", "NATIVE", "OTHERS", "Dice", "Piece"]

F64 = torch.float64


class Dice(random.Random):
    """Choices of structure, and numbers that follow the same seed."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=F64)

    def chance(self, p: float) -> bool:
        return self.random() < p


class Piece(nn.Module):
    """One operation: ``apply(x, t, *numbers)`` on ``(..., n)``, with its parameters and buffers as numbers."""

    def __init__(self, name: str, apply: Callable[..., Tensor], *numbers: Any) -> None:
        super().__init__()
        self.name, self.apply_, self.leaps = name, apply, False
        self.count = len(numbers)
        for i, x in enumerate(numbers):
            if isinstance(x, nn.Module):
                self.add_module(f"n{i}", x)
            elif isinstance(x, nn.Parameter):
                self.register_parameter(f"n{i}", x)
            elif isinstance(x, Tensor):
                self.register_buffer(f"n{i}", x)
            else:
                setattr(self, f"n{i}", x)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.apply_(x, t, *(getattr(self, f"n{i}") for i in range(self.count)))


def parameter(dice: Dice, *shape: int) -> nn.Parameter:
    return nn.Parameter(dice.normal(*shape) / max(1, shape[-1]) ** 0.5)


def linear(dice: Dice, n: int) -> Piece:
    m = dice.choice([1, 2, 3, 5, 7, 8, 9, 16, 17, 33])
    net = nn.Linear(n, m, bias=dice.chance(0.7)).double()
    for p in net.parameters():
        p.data = dice.normal(*p.shape) / max(1, n) ** 0.5
    act = dice.choice(
        [torch.tanh, F.silu, F.gelu, F.softplus, F.elu, F.relu, F.leaky_relu, torch.sigmoid, F.softsign, F.mish]
        + [F.hardtanh, F.selu, F.logsigmoid, F.hardswish, F.relu6, torch.sin, F.tanhshrink]
    )
    return Piece(f"linear {m} {act.__name__}", lambda x, t, net: act(net(x)), net)


def plain(name: str, apply: Callable[..., Tensor]) -> Callable[[Dice, int], Piece]:
    return lambda dice, n: Piece(name, apply)


def leaps(name: str, apply: Callable[..., Tensor]) -> Callable[[Dice, int], Piece]:
    """A piece with jumps, where two roundings may take different sides."""

    def build(dice: Dice, n: int) -> Piece:
        piece = Piece(name, apply)
        piece.leaps = True
        return piece

    return build


def weighted(name: str, apply: Callable[..., Tensor], *shape: Any) -> Callable[[Dice, int], Piece]:
    return lambda dice, n: Piece(name, apply, parameter(dice, *(n if s == "n" else s for s in shape)))


def indexed(name: str, apply: Callable[..., Tensor], most: Any = "n", long: Any = None) -> Callable[[Dice, int], Piece]:
    def build(dice: Dice, n: int) -> Piece:
        count = long or dice.choice([1, 2, 3, 5])
        top = n if most == "n" else most
        return Piece(name, apply, torch.tensor([dice.randrange(top) for _ in range(count)]))

    return build


def own_memory(x: Tensor, t: Tensor) -> Tensor:
    z = x.clone()
    z[..., 0] = torch.sin(x[..., -1])
    z[..., ::2] += 1
    z.mul_(0.5)
    return z


def own_fill(x: Tensor, t: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    z[..., : x.shape[-1] // 2 + 1] = x[..., : x.shape[-1] // 2 + 1].cos()
    z.sub_(x)
    return z


def quadratic(x: Tensor, t: Tensor) -> Tensor:
    outer = x.unsqueeze(-1) * x.unsqueeze(-2)
    return torch.tanh(outer @ torch.cos(x).unsqueeze(-1)).squeeze(-1)


def padded(mode: str) -> Callable[..., Tensor]:
    def apply(x: Tensor, t: Tensor) -> Tensor:
        flat = x.reshape(-1, 1, x.shape[-1])
        wide = F.pad(flat, (1, 1), mode=mode) if x.shape[-1] > 1 else F.pad(flat, (1, 1))
        return wide.reshape(*x.shape[:-1], -1)

    return apply


def convolved(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
    out = F.conv1d(x.reshape(-1, 1, x.shape[-1]), w, padding=1)
    return out.reshape(*x.shape[:-1], -1)


def attention(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
    q, k, v = ((x.unsqueeze(-1) * w[i]) for i in range(3))
    return F.scaled_dot_product_attention(q, k, v).sum(-1)


def picked(x: Tensor, t: Tensor, index: Tensor) -> Tensor:
    wide = index.expand(*x.shape[:-1], index.shape[0])
    return torch.gather(x, -1, wide)


def added(x: Tensor, t: Tensor, index: Tensor) -> Tensor:
    wide = index.expand(*x.shape[:-1], index.shape[0])
    return torch.zeros_like(x).scatter_add(-1, wide, torch.sin(x[..., :1].expand(wide.shape)))


def spectrum(x: Tensor, t: Tensor) -> Tensor:
    z = torch.view_as_complex(torch.stack([x, torch.sin(x)], -1).contiguous())
    return (z * z.conj() + 1j * z).real


def halved(dtype: torch.dtype) -> Callable[..., Tensor]:
    return lambda x, t: torch.cos(x.to(dtype) * 2).to(x.dtype)


def slope_of_energy(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
    return torch.func.grad(lambda z: torch.tanh(z @ w).sum())(x)


def timed(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, t: x * function(t) + 0.1


def several(x: Tensor, t: Tensor) -> Tensor:
    a, b = x.max(-1, keepdim=True).values, x.min(-1, keepdim=True).values
    return (x - b) / (a - b + 1)


def hot(x: Tensor, t: Tensor) -> Tensor:
    return F.one_hot(x.argmax(-1), x.shape[-1]).to(x.dtype) * x


def counted(x: Tensor, t: Tensor) -> Tensor:
    place = torch.arange(x.shape[-1], device=x.device)
    even, late = place % 2 == 0, place > 1
    return torch.where(even & ~late | (x > 0), x * place, x - place.to(x.dtype)) / (1 + place)


def normalised(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[0], w[1])


def solved(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
    return torch.linalg.solve(w @ w.T + torch.eye(x.shape[-1], dtype=x.dtype), x.unsqueeze(-1)).squeeze(-1)


def looped(x: Tensor, t: Tensor) -> Tensor:
    parts = [x[..., i] * (i + 1) for i in range(x.shape[-1])]
    return torch.stack([p - q for p, q in zip(parts, parts[1:] + parts[:1], strict=True)], -1)


def batched(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    left = torch.einsum("bi,jk->bij", flat, w[0]).reshape(flat.shape[0], -1, w.shape[-1])
    return torch.bmm(left, w[1].expand(flat.shape[0], -1, -1)).sum(1).reshape(*x.shape[:-1], -1)


NATIVE: list[Callable[[Dice, int], Piece]] = [
    linear,
    linear,
    linear,
    plain("own memory", own_memory),
    plain("own fill", own_fill),
    plain("quadratic", quadratic),
    plain("softmax", lambda x, t: torch.softmax(x, -1)),
    plain("logsumexp", lambda x, t: x - x.logsumexp(-1, keepdim=True)),
    plain("roll", lambda x, t: torch.sin(x.roll(1, -1) * 2)),
    plain("flip", lambda x, t: x.flip(-1) - x),
    plain("cat", lambda x, t: torch.cat([x[..., 1:], x[..., :1].cos(), x], -1)),
    plain("stack", lambda x, t: torch.stack([x, x * 2, x.sin()], -1).sum(-1)),
    plain("stack flat", lambda x, t: torch.stack([x, x.tanh()], -2).flatten(-2)),
    plain("split", lambda x, t: torch.cat([p * (i + 1) for i, p in enumerate(x.split(2, -1))][::-1], -1)),
    plain("chunk", lambda x, t: torch.cat(x.chunk(3, -1)[::-1], -1)),
    plain("stride", lambda x, t: x[..., ::2] * 2),
    plain("max ties", lambda x, t: torch.maximum(x.clamp(-0.5, 0.5), x.roll(1, -1).clamp(-0.5, 0.5))),
    plain("min", lambda x, t: torch.minimum(x, -x)),
    plain("several", several),
    plain("amax", lambda x, t: x - x.amax(-1, keepdim=True) + x.amin(-1, keepdim=True)),
    leaps("where", lambda x, t: torch.where(x > 0, x.sqrt(), x.exp())),
    leaps("masked", lambda x, t: x.masked_fill(x < -0.3, 0.25)),
    plain("clamp", lambda x, t: x.clamp(min=-0.4)),
    plain("clip", lambda x, t: torch.clamp(x, -torch.ones_like(x) / 2, x.mean(-1, keepdim=True) + 1)),
    leaps("abs", lambda x, t: x.abs().sqrt() + x.sign()),
    leaps("floor", lambda x, t: torch.floor(x * 3) / 3),
    leaps("round", lambda x, t: torch.round(x * 3) / 3 + torch.trunc(x * 2) + torch.ceil(x)),
    leaps("digits", lambda x, t: torch.round(x, decimals=1)),
    leaps("remainder", lambda x, t: torch.remainder(x, 0.7) + torch.fmod(x, 0.4) + x % -0.3),
    leaps("floor div", lambda x, t: torch.div(x, 0.3, rounding_mode="floor") / 5 + x // 0.25),
    leaps("trunc div", lambda x, t: torch.div(x, x.abs() + 0.1, rounding_mode="trunc") + x),
    plain("powers", lambda x, t: x**2 - x**3 + x.abs() ** 0.5 + (x.abs() + 1) ** x + 2**x + (x.abs() + 1) ** -1.5),
    plain("atan2", lambda x, t: torch.atan2(x, x.roll(1, -1)) + torch.hypot(x, x + 1)),
    plain("logs", lambda x, t: torch.log1p(x * x) + torch.expm1(-x.abs()) + torch.rsqrt(1 + x * x) + torch.erf(x)),
    plain("hyper", lambda x, t: torch.asinh(x) + torch.sinh(x.clamp(-2, 2)) + torch.sinc(x) + torch.xlogy(x.abs(), 2)),
    leaps("counted", counted),
    plain("looped", looped),
    plain("sums", lambda x, t: x - x.mean(-1, keepdim=True) + x.sum(-1, keepdim=True).cos()),
    plain(
        "moments", lambda x, t: x / (x.std(-1, keepdim=True, unbiased=False) + x.var(-1, correction=0)[..., None] + 1)
    ),
    plain("norm", lambda x, t: x / (1 + torch.linalg.vector_norm(x, dim=-1, keepdim=True))),
    plain("norms", lambda x, t: F.normalize(x, dim=-1) + x.norm(p=1, dim=-1, keepdim=True).tanh()),
    plain("dot", lambda x, t: x * (x * x.flip(-1)).sum(-1, keepdim=True).sin()),
    leaps("any", lambda x, t: x * (x > 0.2).any(-1, keepdim=True) + (x < 0).all(-1, keepdim=True)),
    leaps("truth", lambda x, t: (x > 0) * x + (x > 0).to(x.dtype) - torch.logical_xor(x > 0, x < 1).to(x.dtype)),
    leaps("nans", lambda x, t: torch.nan_to_num(x / x.clamp(min=0), nan=0.1, posinf=1.0, neginf=-1.0)),
    plain("lerp", lambda x, t: torch.lerp(x, -x, 0.3) + torch.addcmul(x, x, x, value=0.5)),
    plain("repeat", lambda x, t: x.repeat_interleave(2, -1) if x.shape[-1] < 9 else x[..., :4]),
    plain("tile", lambda x, t: torch.cat([x, x], -1) if x.shape[-1] < 9 else x[..., 3:]),
    plain("transposed", lambda x, t: (x.unsqueeze(-1) + x.unsqueeze(-2).cos()).transpose(-1, -2).mean(-1)),
    plain("diagonal", lambda x, t: (x.unsqueeze(-1) * x.unsqueeze(-2)).diagonal(dim1=-2, dim2=-1)),
    plain("zero pad", lambda x, t: F.pad(x, (1, 2), value=0.3)),
    plain("diff", lambda x, t: torch.diff(x, dim=-1, prepend=x[..., :1])),
    plain("float32", lambda x, t: torch.cos(x.float() * 2).to(x.dtype)),
    leaps("integers", lambda x, t: (x * 4).long().clamp(-3, 3).to(x.dtype) / 4 + ((x * 3).int() % 2)),
    plain("time wave", timed(lambda t: torch.sin(3 * t) + t)),
    leaps("time steps", timed(lambda t: torch.floor(5 * t) / 5)),
    leaps("time kink", timed(lambda t: (t - 0.5).abs() + t % 0.3)),
    leaps("heaviside", lambda x, t: torch.where(t > 0.4, x, x.cos())),
    weighted("matmul", lambda x, t, w: x @ w, "n", 3),
    weighted("matmul t", lambda x, t, w: torch.tanh(x @ w.T), 5, "n"),
    weighted("vector", lambda x, t, w: x * (x @ w).unsqueeze(-1).sin(), "n"),
    weighted("einsum", lambda x, t, w: torch.einsum("...i,ij->...j", x, w), "n", 4),
    weighted("einsum 3", lambda x, t, w: torch.einsum("...i,ijk,...j->...k", x, w, x).tanh(), "n", "n", 2),
    weighted("normalised", normalised, 2, "n"),
    weighted("rms norm", lambda x, t, w: F.rms_norm(x, x.shape[-1:], w), "n"),
    weighted("batched", batched, 2, 3, 3),
    weighted("bilinear", lambda x, t, w: x * w + torch.outer(w, w).sum(0), "n"),
    weighted("prelu", lambda x, t, w: torch.where(x > 0, x, w * x), "n"),
]
"""Operations that native code is mostly written for."""

OTHERS: list[Callable[[Dice, int], Piece]] = [
    plain("cumsum", lambda x, t: x.cumsum(-1) / x.shape[-1]),
    plain("cumprod", lambda x, t: x.tanh().cumprod(-1)),
    leaps("sort", lambda x, t: x.sort(-1).values),
    leaps("top", lambda x, t: x.topk(min(2, x.shape[-1]), -1).values),
    leaps("hot", hot),
    plain("spectrum", spectrum),
    plain("fourier", lambda x, t: torch.fft.irfft(torch.fft.rfft(x, dim=-1) * 0.5, n=x.shape[-1], dim=-1)),
    plain("bfloat16", halved(torch.bfloat16)),
    plain("float16", halved(torch.float16)),
    plain("prod", lambda x, t: x * x.tanh().prod(-1, keepdim=True)),
    plain("circular", padded("circular")),
    plain("reflect", padded("replicate")),
    plain("tril", lambda x, t: torch.tril(x.unsqueeze(-1) * x.unsqueeze(-2)).sum(-1).tanh()),
    plain("cdist", lambda x, t: (x.unsqueeze(-1) - x.unsqueeze(-2)).square().add(1).sqrt().mean(-1)),
    plain("special", lambda x, t: torch.special.i0e(x) + torch.lgamma(x.abs() + 1) + torch.erfinv(x.tanh() / 2)),
    weighted("convolved", convolved, 1, 1, 3),
    weighted("attention", attention, 3, 2),
    weighted("energy", slope_of_energy, "n", 3),
    weighted("solved", solved, "n", "n"),
    indexed("picked", picked),
    indexed("added", added),
    indexed("index", lambda x, t, i: x[..., i]),
    indexed("index select", lambda x, t, i: x.index_select(-1, i)),
    indexed("table", lambda x, t, i: x + F.embedding(i, torch.linspace(0, 1, 8, dtype=x.dtype).reshape(4, 2)).sum(), 4),
]
"""Operations that torch's compiler is mostly left with."""

COARSE = ("float32", "bfloat16", "float16")
"""Pieces in which roundings are large."""
