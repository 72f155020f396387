"""Denoisers: anything that answers E[x_0 | x_t].

A network becomes one by saying what it answers (`Denoiser` with a parameterisation and a clock) or
how it was preconditioned (`Preconditioned`); `Cast` asks it in its own dtype. Wrappers change a
denoiser's answer: `Conditioned` fixes what else the network is told, `Thresholded` keeps the data in
their range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dxdt.diffusion.denoisers.defined import check_answer, check_told, default_clock, default_parameterisation, end_of
from dxdt.diffusion.denoisers.network import ask
from dxdt.diffusion.denoisers.noise_label import Clock
from dxdt.diffusion.denoisers.parameterisation import Parameterisation
from dxdt.diffusion.denoisers.posterior import Place, Posterior, Sight
from dxdt.diffusion.denoisers.preconditioning import Preconditioning
from dxdt.diffusion.processes.process import Moments, Process, along, check_mean

__all__ = ["Cast", "Conditioned", "Denoiser", "DenoiserLike", "Preconditioned", "check_end"]


def check_end(denoiser: Any) -> None:
    """Refuse a denoiser that is not defined at t1 of its process, where samples begin.

    Raises:
        ValueError: its network answers noise or score where nothing is left of the data, or is told what is not finite.
    """
    for part in denoiser.modules() if isinstance(denoiser, nn.Module) else ():
        if isinstance(part, Denoiser):
            check_answer(part.process, part.parameterisation)
            check_told(part.process, "Denoiser: the clock", part.clock(part.process, end_of(part.process)))
        elif isinstance(part, Preconditioned):
            name = f"Preconditioned: {type(part.preconditioning).__name__}"
            told = part.preconditioning.told((-part.process.lam(end_of(part.process))).exp())
            check_told(part.process, name, told)


class DenoiserLike(Protocol):
    """What the rest of the room asks of a denoiser."""

    @property
    def process(self) -> Process:
        """The diffusion whose x_t it reads."""
        ...

    def __call__(self, x: Tensor, t: Tensor, mu: Tensor | None = None) -> Posterior:
        """Return what is known about x_0 given x_t = `x`."""
        ...


def _ask(
    net: Callable[..., Any], x: Tensor, told: Tensor, mu: Tensor | None, condition: dict[str, Any], name: str
) -> Tensor:
    """Return the network's answer, of x's shape and dtype; it is told one time for each row."""
    told = _on(told, x)
    output = ask(net, x, told if told.ndim else told.expand(x.shape[:1]), mu, condition, name)
    if output.shape != x.shape:
        raise ValueError(
            f"{name}: the network answered with shape {tuple(output.shape)} to x_t of shape "
            f"{tuple(x.shape)}; give it as many output channels as input channels."
        )
    return output


def foreseen(denoiser: Any, t: Float[Tensor, " times"], like: Tensor) -> list[Any] | None:
    """Return what a denoiser prepares for times known before it is asked, given back to it as `sight` beside each of
    them, or None where it prepares nothing."""
    prepare = getattr(denoiser, "foresee", None)
    return None if prepare is None else prepare(t, like)


def _on(told: Tensor, like: Tensor) -> Tensor:
    """Network times on the device of the data and in their precision, but float32 at least: index times do not fit
    half precision, and networks embed them before they meet the data."""
    if told.dtype is like.dtype is torch.float32 and told.device == like.device:
        return told
    if told.is_floating_point():
        return told.to(like.device, torch.promote_types(like.dtype, torch.float32))
    return told.to(like.device)


def _known(process: Process, t: Tensor, like: Tensor) -> list[Moments]:
    """a, b and c at times (K,), each as the scalars that meet data such as `like`."""
    each = [f(t).to(like).unbind(0) for f in (process.a, process.b, process.c)]
    return [Moments(*row) for row in zip(*each, strict=True)]


def _seen(process: Process, sight: Sight, x: Tensor, t: Tensor, mu: Tensor | None) -> tuple[Place, Tensor]:
    """The place that was prepared, and what the network is told there, one number for each time."""
    check_mean(mu, x)
    return Place(process, t, x, mu, sight.at), sight.told.expand(t.shape)


@final
class Denoiser(nn.Module):
    """A network wrapped so that it answers E[x_0 | x_t].

    Args:
        net: called as net(x_t, clock) or, with a mean, net(x_t, clock, mu), followed by what else it
            is told as keywords; any module or function whose result has the shape of x_t, in a tuple or as `sample` of
            an object too. Times have one entry for each row; weights of another dtype are asked in theirs.
        process: the diffusion it was, or will be, trained on.
        parameterisation: what the network answers; noise by default, velocity where no data are left at t1 (flows).
        clock: what it is told about the time; by default the half log signal-to-noise ratio, or t where that is
            not finite on the whole span (flows).

    Raises:
        ValueError: the network's answer has another shape than x_t, or `mu` does not match it.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        process: Process,
        parameterisation: Parameterisation | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.process = process
        self.parameterisation = default_parameterisation(process) if parameterisation is None else parameterisation
        self.clock = default_clock(process) if clock is None else clock

    @property
    def foresight(self) -> tuple[Any, ...]:
        """What `foresee` follows from, besides its arguments."""
        return Denoiser, self.process, self.clock

    def foresee(self, t: Float[Tensor, " times"], like: Tensor) -> list[Sight]:
        """Return what `forward` may be told beside each of these times, where data are such as `like`."""
        told = _on(self.clock(self.process, t.double()), like)
        return [Sight(*both) for both in zip(_known(self.process, t.double(), like), told.unbind(0), strict=True)]

    def forward(
        self,
        x: Float[Tensor, "batch *shape"],
        t: Tensor,
        mu: Tensor | None = None,
        *,
        sight: Sight | None = None,
        **condition: Any,
    ) -> Posterior:
        """Return what is known about x_0 given `x` at times `t` () or (batch,).

        Args:
            x: x_t.
            t: times.
            mu: mean of the process.
            sight: what `foresee` prepared, where all times are one.
            condition: passed on to the network, such as labels=y.
        """
        if sight is None:
            place = Place.of(self.process, t, x, mu)
            told = self.clock(self.process, t.double())
        else:
            place, told = _seen(self.process, sight, x, t, mu)
        output = _ask(self.net, x, told, mu, condition, "Denoiser")
        return self.parameterisation.read(output, place)


@final
class Preconditioned(nn.Module):
    """A network F that was trained under a preconditioning, as a denoiser of any process.

        E[x_0 | x_t] = c_skip y + c_out F(c_in y, c_noise),    y = (x_t - b mu) / a,  sigma = c / a

    Args:
        net: called like that of `Denoiser`.
        process: the diffusion whose x_t it shall read, not necessarily that of its training.
        preconditioning: the four functions of sigma, such as `EDMPreconditioning()`.

    Source: Karras et al., "Elucidating the design space of diffusion-based generative models"
    (2022), equation 7; the scaling of x_t is their section 3 read backwards.

    Raises:
        ValueError: the network's answer has another shape than x_t, or `mu` does not match it.
    """

    def __init__(self, net: Callable[..., Tensor], process: Process, preconditioning: Preconditioning) -> None:
        super().__init__()
        self.net = net
        self.process = process
        self.preconditioning = preconditioning

    def _scales(self, t: Tensor) -> tuple[Tensor, ...]:
        """The weights of xi and F, and what the network is told."""
        w = self.preconditioning.weights(self.process.a(t), self.process.c(t))
        told = self.preconditioning.told((-self.process.lam(t)).exp())
        return w.into, w.data_skip, w.data_out, w.noise_skip, w.noise_out, told

    @property
    def foresight(self) -> tuple[Any, ...]:
        """What `foresee` follows from, besides its arguments."""
        return Preconditioned, self.process, self.preconditioning

    def foresee(self, t: Float[Tensor, " times"], like: Tensor) -> list[Sight]:
        """Return what `forward` may be told beside each of these times; as `Denoiser`."""
        *weights, told = self._scales(t.double())
        rows = zip(*(w.to(like).unbind(0) for w in weights), strict=True)
        known = _known(self.process, t.double(), like)
        return [Sight(*each) for each in zip(known, _on(told, like).unbind(0), rows, strict=True)]

    def forward(
        self,
        x: Float[Tensor, "batch *shape"],
        t: Tensor,
        mu: Tensor | None = None,
        *,
        sight: Sight | None = None,
        **condition: Any,
    ) -> Posterior:
        """Return what is known about x_0 given `x` at times `t` () or (batch,); as `Denoiser`."""
        if sight is None:
            place = Place.of(self.process, t, x, mu)
            *weights, told = self._scales(t.double())
            weights = [along(w, x) for w in weights]
        else:
            place, told = _seen(self.process, sight, x, t, mu)
            weights = sight.scales
        into, data_skip, data_out, noise_skip, noise_out = weights
        xi = place.xi
        answer = _ask(self.net, into * xi, told, mu, condition, "Preconditioned")
        return place.answer(data_skip * xi + data_out * answer, noise_skip * xi + noise_out * answer)


@final
class Cast(nn.Module):
    """A network asked in its own dtype, whatever that of the state: float64 states, half-precision networks.

    Args:
        net: called like that of `Denoiser`.
        dtype: in which it is asked; the time comes in float32 at least, and the answer goes back in
            the dtype of x_t.
    """

    def __init__(self, net: Callable[..., Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.net = net
        self.dtype = dtype

    def _own(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def forward(self, x: Float[Tensor, "batch *shape"], told: Tensor, *mu: Tensor, **condition: Any) -> Tensor:
        """Return the network's answer in the dtype of `x`."""
        if told.is_floating_point():
            told = told.to(torch.promote_types(self.dtype, torch.float32))
        named = {name: self._own(value) for name, value in condition.items()}
        return self.net(self._own(x), told, *map(self._own, mu), **named).to(x.dtype)


@final
class Conditioned(nn.Module):
    """A denoiser whose network is always told the same, such as the labels of a batch of samples.

        Conditioned(denoiser, labels=y)(x, t) = denoiser(x, t, labels=y)

    Args:
        denoiser: takes keywords, as `Denoiser` does.
        condition: by the names that the network gives them; tensors have one row for each sample.
    """

    def __init__(self, denoiser: Callable[..., Posterior], /, **condition: Any) -> None:
        super().__init__()
        self.denoiser: Any = denoiser
        self.condition = condition

    @property
    def process(self) -> Process:
        """That of the denoiser."""
        return self.denoiser.process

    def foresee(self, t: Float[Tensor, " times"], like: Tensor) -> list[Any] | None:
        """Return what the denoiser prepares for these times."""
        return foreseen(self.denoiser, t, like)

    def forward(
        self, x: Float[Tensor, "batch *shape"], t: Tensor, mu: Tensor | None = None, **condition: Any
    ) -> Posterior:
        """Return the answer under the condition; keywords given here go before."""
        return self.denoiser(x, t, mu, **{**self.condition, **condition})
