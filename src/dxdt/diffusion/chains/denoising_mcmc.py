"""Denoising MCMC: chains near the data, and a short way from each of their places to a sample.

Chains move in the product space by any kernel; after every few sweeps the place of each chain is carried down to the
data by an integrator, from its own level and beside the chain, which goes on from where it is.

Source: Kim and Ye, "Denoising MCMC for accelerating diffusion-based generative models" (2023).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor

from dxdt.diffusion.chains.integrator import Integrator
from dxdt.diffusion.chains.moves import LevelKernel
from dxdt.diffusion.chains.product_space import LevelState, ProductSpace
from dxdt.diffusion.chains.start import Chosen, Last, Selection, Start, StartFromData
from dxdt.diffusion.denoisers.denoiser import DenoiserLike
from dxdt.mcmc import Draws, Local, adapted, march, settled

__all__ = ["Counts", "DenoisingMCMC", "Progress", "Run", "ChainDraw"]


@final
@dataclass(frozen=True)
class Counts:
    """Calls, all chains together being one.

    Attributes:
        start, burn_in: before the first sample.
        chain: of the sweeps between samples.
        denoise: of the integrator.
        classifier: of other networks, at any time.
        draws: samples of each chain.
        seconds: of the wall for chain and integrator.
    """

    start: int = 0
    burn_in: int = 0
    chain: int = 0
    denoise: int = 0
    classifier: int = 0
    draws: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Calls of the denoiser."""
        return self.start + self.burn_in + self.chain + self.denoise

    @property
    def per_sample(self) -> float:
        """Calls for one more sample of a chain, as the literature counts them."""
        return (self.chain + self.denoise) / max(1, self.draws)

    @property
    def per_sample_in_all(self) -> float:
        """Calls for each of the samples so far, start and burn-in shared among them."""
        return self.total / max(1, self.draws)


@final
@dataclass(frozen=True, eq=False)
class ChainDraw:
    """One sample of each chain.

    Attributes:
        x: samples (chains, *shape); NaN where one failed.
        level: at which each was left by the chain (chains,).
        chain_level: where the chains are (chains,).
        acceptance: mean over the sweeps (chains,), or None.
        progress: of the run, from which it can be taken up again.
    """

    x: Tensor
    level: Tensor
    chain_level: Tensor
    acceptance: Tensor | None
    progress: Progress = field(repr=False)


@final
@dataclass(frozen=True, eq=False)
class Progress:
    """What a run needs to go on.

    Attributes:
        state: of the chains.
        sweeps: so far, the burn-in among them.
        counts: so far.
        seed, first: of the run.
        settings: of the run, in words.
    """

    state: LevelState
    sweeps: int
    counts: Counts
    seed: int
    first: int
    settings: Mapping[str, str]

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and plain values, for a file."""
        tensors = {"x": self.state.x, "level": self.state.level}
        if self.state.momentum is not None:
            tensors["momentum"] = self.state.momentum
        if self.state.local is not None:
            tensors["score"] = self.state.local.score
            if self.state.local.log_prob is not None:
                tensors["log_prob"] = self.state.local.log_prob
        plain = {"sweeps": self.sweeps, "counts": vars(self.counts), "seed": self.seed, "first": self.first}
        return tensors, {**plain, "settings": dict(self.settings)}


def _restored(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Progress:
    local = None
    if "score" in tensors:
        local = Local(tensors["score"], tensors.get("log_prob"))
    state = LevelState(tensors["x"], tensors["level"], local, tensors.get("momentum"))
    counts = Counts(**plain["counts"])
    return Progress(state, plain["sweeps"], counts, plain["seed"], plain["first"], plain["settings"])


@final
@dataclass(frozen=True, eq=False)
class Run:
    """All samples of a run.

    Attributes:
        x: (chains, draws, *shape).
        level: at which each was left by its chain (chains, draws).
        chain_level: where the chains were (chains, draws).
        statistics: by name (chains, draws), such as "acceptance".
        counts: what it took.
        progress: from which it can be taken up again.
    """

    x: Tensor
    level: Tensor
    chain_level: Tensor
    statistics: dict[str, Tensor]
    counts: Counts
    progress: Progress = field(repr=False)


@final
@dataclass(frozen=True)
class DenoisingMCMC:
    """Denoising MCMC over any kernel of the product space and any integrator.

    Args:
        space: the product space, or a denoiser, whose levels all count then, even in log sigma.
        kernel: such as `restart(0.4, 2.0)` or `dlg(0.05, posterior)`.
        start: `StartFromNoise(shape, level)` or `StartFromData(data, level)`.
        integrator: from the level of a chain to the data.
        sweeps: of the kernel between two samples of a chain.
        burn_in: sweeps before the first.
        select: which place becomes the sample.

    Raises:
        TypeError: `space` is neither.
        ValueError: there is no sweep, or the burn-in is negative.
    """

    space: ProductSpace | DenoiserLike
    kernel: LevelKernel
    start: Start
    integrator: Integrator = Integrator()  # noqa: RUF009
    sweeps: int = 1
    burn_in: int = 0
    select: Selection = Last()  # noqa: RUF009

    def __post_init__(self) -> None:
        if not isinstance(self.space, ProductSpace):
            object.__setattr__(self, "space", ProductSpace(self.space))
        if self.sweeps < 1 or self.burn_in < 0:
            raise ValueError(
                f"DenoisingMCMC: sweeps={self.sweeps} and burn_in={self.burn_in} move nothing; give at least one sweep "
                "and a burn-in of 0 or more."
            )

    @property
    def product_space(self) -> ProductSpace:
        """The product space."""
        assert isinstance(self.space, ProductSpace)
        return self.space

    def settings(self) -> dict[str, str]:
        """Return in words what a run may not change when it is taken up again."""
        space = self.product_space
        words: dict[str, Any] = {
            "process": space.denoiser.process,
            "prior": space.prior,
            "kernel": self.kernel,
            "integrator": self.integrator,
            "sweeps": self.sweeps,
            "burn_in": self.burn_in,
            "select": self.select,
        }
        return {name: repr(value) for name, value in words.items()}

    def resumed(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Progress:
        """Return the progress of a `state_dict`.

        Raises:
            ValueError: it is of a run with other settings, or not whole.
        """
        missing = [k for k in ("x", "level") if k not in tensors]
        missing += [k for k in ("sweeps", "counts", "seed", "first", "settings") if k not in plain]
        if missing:
            raise ValueError(f"DenoisingMCMC: the progress lacks {', '.join(missing)}; start the run over.")
        found = _restored(tensors, plain)
        self._check_settings(found)
        return found

    def _check_settings(self, progress: Progress) -> None:
        own = self.settings()
        changed = [name for name in own if own[name] != progress.settings.get(name)]
        if changed:
            raise ValueError(
                f"DenoisingMCMC: the progress is of a run with another {' and another '.join(changed)}; "
                "go on with the same, or start over."
            )

    def within(self, calls: int, *, seed: int = 0) -> DenoisingMCMC:
        """Return the same with as many steps of the integrator as a budget of calls a sample leaves.

        One sweep of one chain, from a datum of noise, tells what the kernel takes.

        Raises:
            ValueError: the sweeps alone take more.
        """
        x, level = self._probe(seed)
        state = self.product_space.start(x, level)
        loop = march(self.kernel, self.product_space, state, Draws.of(seed, x), 2)
        _, (_, info) = next(loop), next(loop)
        rest = calls - self.sweeps * info.evaluations
        if rest < 1:
            raise ValueError(
                f"DenoisingMCMC: {self.sweeps} sweeps of {info.evaluations} calls leave nothing of a budget of "
                f"{calls}; give more calls or fewer sweeps."
            )
        return replace(self, integrator=self.integrator.within(rest))

    def _probe(self, seed: int) -> tuple[Tensor, float]:
        prior = self.product_space.prior
        start: Any = self.start
        level = min(max(float(getattr(start, "level", prior.low)), prior.low), prior.high)
        like = start.data[:1] if isinstance(start, StartFromData) else torch.zeros(1, *start.shape, dtype=start.dtype)
        return level * Draws.of(seed, like).normal(like), level

    @torch.no_grad()
    def warmed_up(self, chains: int, *, sweeps: int = 100, seed: int = 0) -> DenoisingMCMC:
        """Return the same with step sizes adapted to their rates of acceptance; runs do not adapt any more.

        Raises:
            ValueError: there are no chains.
        """
        state, _ = self._begun(chains, seed, 0)
        draws, kernel, averages = Draws.of(seed, state.x).part(3), self.kernel, None
        for number in range(sweeps):
            state, info = kernel.step(self.product_space, state, draws.at(number))
            kernel, averages = adapted(kernel, info, averages)
        return replace(self, kernel=settled(kernel, averages or {}))

    def _begun(self, chains: int, seed: int, first: int) -> tuple[LevelState, int]:
        if chains < 1:
            raise ValueError(f"DenoisingMCMC: chains={chains} is nobody; give at least one.")
        numbers = Draws(seed, torch.arange(first, first + chains))
        with torch.no_grad():
            state, evaluations = self.start(self.product_space, chains, numbers.part(0))
        return state, evaluations

    def stream(
        self,
        chains: int = 0,
        draws: int | None = None,
        *,
        seed: int = 0,
        first: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[ChainDraw]:
        """Yield one sample of each chain at a time, without end where `draws` is None.

        Args:
            chains: how many; not asked where a run is taken up.
            draws: samples of each chain.
            seed: names all random numbers.
            first: number of the first chain, so that many may be run in parts.
            progress: of a former window, to go on from there.

        Raises:
            ValueError: there are no chains, or the progress is of a run with other settings.
        """
        if progress is None:
            state, begun = self._begun(chains, seed, first)
            progress = Progress(state, 0, Counts(start=begun), seed, first, self.settings())
        self._check_settings(progress)
        return self._windows(progress, draws)

    def _windows(self, progress: Progress, draws: int | None) -> Iterator[ChainDraw]:
        space, state, counts = self.product_space, progress.state, progress.counts
        numbers = Draws.of(progress.seed, state.x, progress.first)
        sweeps = march(self.kernel, space, state, numbers.part(1).at(progress.sweeps))
        while progress.sweeps < self.burn_in:
            state, info = next(sweeps)
            burnt = counts.burn_in + info.evaluations
            counts = replace(counts, burn_in=burnt, classifier=counts.classifier + info.calls)
            progress = replace(progress, state=state, sweeps=progress.sweeps + 1, counts=counts)
        done = 0
        while draws is None or done < draws:
            begun = time.perf_counter()
            place, rates = Chosen(state.x, state.level), []
            for _ in range(self.sweeps):
                state, info = next(sweeps)
                place = self.select(place, state)
                rates += [] if info.acceptance is None else [info.acceptance]
                chain, calls = counts.chain + info.evaluations, counts.classifier + info.calls
                counts = replace(counts, chain=chain, classifier=calls)
            seed = numbers.part(2).at(counts.draws).named()
            with torch.no_grad():
                x, evaluations = self.integrator(space, place.x, place.level, seed=seed, first=progress.first)
            counts = replace(
                counts,
                denoise=counts.denoise + evaluations,
                draws=counts.draws + 1,
                seconds=counts.seconds + time.perf_counter() - begun,
            )
            progress = replace(progress, state=state, sweeps=progress.sweeps + self.sweeps, counts=counts)
            acceptance = torch.stack(rates).mean(0) if rates else None
            yield ChainDraw(x, place.level, state.level, acceptance, progress)
            done += 1

    def run(
        self,
        chains: int = 0,
        draws: int = 1,
        *,
        seed: int = 0,
        first: int = 0,
        progress: Progress | None = None,
    ) -> Run:
        """Return `draws` samples of each chain, and what they took; as `stream`.

        Raises:
            ValueError: as `stream`, or there are no draws.
        """
        if draws < 1:
            raise ValueError(f"DenoisingMCMC: draws={draws} keeps nothing; give at least one.")
        found = list(self.stream(chains, draws, seed=seed, first=first, progress=progress))
        statistics: dict[str, Tensor] = {}
        rates = [w.acceptance for w in found if w.acceptance is not None]
        if len(rates) == len(found):
            statistics["acceptance"] = torch.stack(rates, 1)
        run = Run(
            torch.stack([w.x for w in found], 1),
            torch.stack([w.level for w in found], 1),
            torch.stack([w.chain_level for w in found], 1),
            statistics,
            found[-1].progress.counts,
            found[-1].progress,
        )
        _warn_lost(run)
        return run


def _warn_lost(run: Run) -> None:
    lost = ~torch.isfinite(run.x).flatten(2).all(2)
    gone = ~torch.isfinite(run.progress.state.x).flatten(1).all(1)
    if bool(lost.any()):
        warnings.warn(
            f"DenoisingMCMC: {int(lost.sum())} of {lost.numel()} samples are not finite, and {int(gone.sum())} of "
            f"{len(gone)} chains have left the finite numbers; the others are unharmed. Take a smaller step of the "
            "kernel, or more steps of the integrator.",
            stacklevel=3,
        )
