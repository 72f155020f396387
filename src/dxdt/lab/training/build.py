"""From settings to the objects that they describe."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from dxdt import diffusion as d
from dxdt.lab.data.images import Augmentation, Flip, Shift
from dxdt.lab.training import settings as s
from dxdt.nn import UNet

__all__ = ["augmentations", "denoiser", "network", "objective", "process"]


def network(net: s.SmallUNet, shape: tuple[int, int, int], classes: int | None) -> nn.Module:
    """Return the network for images of a shape, told one of `classes` where there are some."""
    return UNet(
        shape[0],
        channels=net.channels,
        multipliers=net.multipliers,
        blocks=net.blocks,
        attention=net.attention,
        heads=net.heads,
        dropout=net.dropout,
        classes=classes,
        patch=net.patch,
    )


def process(choice: s.ProcessChoice) -> d.Process:
    """Return the process from data to noise."""
    match choice:
        case s.Vp(low, high):
            return d.VP(d.Linear(low, high))
        case s.CosineVp():
            return d.VP(d.Cosine())
        case s.SubVp(low, high):
            return d.SubVP(d.Linear(low, high))
        case s.Ve(low, high):
            return d.VE(low, high)
        case s.Edm():
            return d.EDM()
        case s.Flow():
            return d.RectifiedFlow()


def denoiser(choice: s.AnswerChoice, net: Callable[..., Tensor], process: d.Process) -> nn.Module:
    """Return the denoiser whose network answers as the settings say."""
    match choice:
        case s.Noise():
            return d.Denoiser(net, process, d.Noise())
        case s.Data():
            return d.Denoiser(net, process, d.Data())
        case s.Velocity():
            return d.Denoiser(net, process, d.Velocity())
        case s.Angular():
            return d.Denoiser(net, process, d.AngularVelocity())
        case s.Preconditioned(std):
            return d.Preconditioned(net, process, d.EDMPreconditioning(std))


def objective(choice: s.ObjectiveChoice) -> d.Objective:
    """Return the objective, with its law of times."""
    match choice:
        case s.Matching(t0, uniform) if uniform >= 1:
            return d.DenoisingScoreMatching(d.UniformTime(t0))
        case s.Matching(t0, uniform):
            return d.DenoisingScoreMatching(d.Mixed(d.UniformTime(t0), d.UniformLogSNR(t0), uniform))
        case s.MaximumLikelihood(t0):
            return d.maximum_likelihood(t0)
        case s.EdmLoss(mean, std, data_std):
            return d.EDMLoss(d.LogNormalScale(mean, std), data_std)
        case s.Smld(count):
            return d.smld(count)
        case s.Ddpm(count):
            return d.ddpm(count)


def augmentations(choice: s.Augment) -> tuple[Augmentation, ...]:
    """Return the random changes of images, in order."""
    flip = (Flip(choice.flip),) if choice.flip > 0 else ()
    shift = (Shift(choice.shift),) if choice.shift > 0 else ()
    return (*flip, *shift)
