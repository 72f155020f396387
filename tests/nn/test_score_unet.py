"""Published networks: parameter counts, resampling against its definition, shapes, conditions, bad input."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dxdt import nn as networks
from dxdt.nn import Combine, Downsample, Labels, Positional, Progressive, ScoreUNet, Upsample
from dxdt.nn.resample import DownConv, UpConv

FIR = (1.0, 3.0, 3.0, 1.0)


def upfirdn(x: Tensor, taps: tuple[float, ...], *, up: int, down: int, pad: tuple[int, int], gain: float) -> Tensor:
    """The definition: put zeros between pixels, pad, convolve with the flipped filter, keep every `down`-th."""
    line = torch.tensor(taps, dtype=x.dtype)
    kernel = torch.outer(line, line) / line.sum() ** 2 * gain
    batch, n, height, width = x.shape
    z = x.new_zeros(batch, n, height * up, width * up)
    z[:, :, ::up, ::up] = x
    z = F.pad(z, (*pad, *pad))
    windows = z.unfold(2, len(taps), 1).unfold(3, len(taps), 1)
    return (windows * kernel.flip(0, 1)).sum((-1, -2))[:, :, ::down, ::down]


@pytest.mark.parametrize("taps", [(1.0, 1.0), FIR, (1.0, 2.0, 5.0, 1.0), (1.0, 3.0, 7.0, 7.0, 3.0, 1.0)])
def test_resampling_is_its_definition(taps: tuple[float, ...]):
    x = torch.randn(2, 3, 6, 8).double()
    p = len(taps) - 2
    flipped = taps[::-1]  # the definition convolves, the module's filter is written as a correlation
    down = upfirdn(x, flipped, up=1, down=2, pad=((p + 1) // 2, p // 2), gain=1)
    assert torch.allclose(Downsample(taps).double()(x), down, atol=1e-7)
    up = upfirdn(x, taps, up=2, down=1, pad=((p + 1) // 2 + 1, p // 2), gain=4)
    assert torch.allclose(Upsample(taps).double()(x), up, atol=1e-7)


def test_constant_images_stay_constant_inside():
    x = torch.ones(1, 1, 8, 8)
    for change in (Downsample(FIR), Upsample(FIR)):
        assert torch.allclose(change(x)[:, :, 2:-2, 2:-2], torch.ones(()))


def test_convolutions_that_resample_pad_once():
    """On images with a wide black border, filter and convolution in either order agree."""
    x = F.pad(torch.randn(1, 2, 6, 6), (6, 6, 6, 6)).double()
    down, up = DownConv(2, 3, FIR).double(), UpConv(2, 3, FIR).double()
    shrunk = Downsample(FIR).double()(F.conv2d(x, down.conv.weight, down.conv.bias * 0, padding=1))
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert torch.allclose(down(x)[inside], shrunk[inside], atol=1e-7)
    grown = F.conv2d(Upsample(FIR).double()(x), up.conv.weight, up.conv.bias, padding=1)
    assert torch.allclose(up(x)[inside], grown[inside], atol=1e-7)


PUBLISHED = {
    "ncsnpp": (networks.ncsnpp(), 62.76),
    "ncsnpp, deep": (networks.ncsnpp(blocks=8), 107.59),
    "ddpmpp": (networks.ddpmpp(), 61.80),
    "ddpmpp, deep": (networks.ddpmpp(blocks=8), 106.63),
    "ddpm": (networks.ddpm(), 35.22),
    "edm ddpmpp, with classes": (networks.edm_ddpmpp(labels=10), 55.7),
    "edm ncsnpp": (networks.edm_ncsnpp(), 56.4),
    "adm": (networks.adm(), 295.9),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_published(name: str):
    architecture, millions = PUBLISHED[name]
    with torch.device("meta"):
        net = ScoreUNet(architecture)
    count = sum(p.numel() for p in net.parameters()) / 1e6
    digits = len(str(millions).partition(".")[2])
    assert round(count, digits) == millions
    assert net(torch.empty(2, 3, 32, 32, device="meta"), torch.empty(2, device="meta")).shape == (2, 3, 32, 32)


@pytest.mark.slow
def test_the_network_for_1024_pixels_answers():
    net = ScoreUNet(networks.ncsnpp_1024())
    with torch.no_grad():
        y = net(torch.rand(1, 3, 1024, 1024), torch.tensor([3.0]))
    assert y.shape == (1, 3, 1024, 1024)
    assert y.isfinite().all()


def small(**changes: object) -> networks.Architecture:
    return dataclasses.replace(
        networks.ncsnpp(2, width=8, multipliers=(1, 2), blocks=1, dropout=0.0, attention=(1,)), **changes
    )


def lively(net: nn.Module) -> nn.Module:
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


VARIANTS = {
    f"{i.value} in, {o.value} out, {c.value}": small(progressive_input=i, progressive_output=o, combine=c)
    for i in Progressive
    for o in Progressive
    for c in Combine
}
VARIANTS["without a filter"] = small(
    taps=None, resample=networks.ConvResample(), progressive_output=Progressive.RESIDUAL
)
VARIANTS["classes early"] = small(labels=Labels(5, early=True), augment=3)
VARIANTS["adm"] = networks.adm(2, width=8, multipliers=(1, 2), blocks=1, attention=(0, 1), labels=5, out_channels=4)
VARIANTS["ddpm"] = networks.ddpm(2, width=64, multipliers=(1, 2), blocks=1)


@pytest.mark.parametrize("name", VARIANTS)
def test_samples_do_not_mix_and_the_level_is_heard(name: str):
    net = lively(ScoreUNet(VARIANTS[name]).eval()).double()
    x, t = torch.randn(3, 2, 4, 8).double(), 1 + torch.rand(3).double()
    together = net(x, t)
    assert together.shape == (3, net.architecture.out_channels, 4, 8)
    alone = torch.cat([net(x[k : k + 1], t[k]) for k in range(3)])
    assert torch.allclose(together, alone, rtol=1e-9, atol=1e-9)
    assert (net(x, 2 * t) - together).abs().max() > 1e-6


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_is_used(name: str):
    net = lively(ScoreUNet(VARIANTS[name]))
    labels = None if net.architecture.labels is None else torch.tensor([1, 3])
    augment = torch.randn(2, 3) if net.architecture.augment else None
    net(torch.randn(2, 2, 4, 4), torch.rand(2) + 1, labels, augment).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ["classes early", "adm"])
def test_classes_are_heard_and_may_be_mixed(name: str):
    net = lively(ScoreUNet(VARIANTS[name]).eval())
    x, t = torch.randn(2, 2, 4, 4), torch.rand(2) + 1
    two = net(x, t, torch.tensor([2, 2]))
    assert torch.allclose(two, net(x, t, F.one_hot(torch.tensor([2, 2]), 5)))
    assert (two - net(x, t)).abs().max() > 1e-5
    with pytest.raises(ValueError, match="5 classes"):
        net(x, t, torch.rand(2, 4))


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_positional_embedding_is_its_formula(shift: float):
    t = torch.tensor([0.3, 17.0])
    e = Positional(8, shift=shift)(t)
    for k in range(4):
        w = 10_000.0 ** (-k / (4 - shift))
        assert torch.allclose(e[:, k], (w * t).sin(), atol=1e-6)
        assert torch.allclose(e[:, 4 + k], (w * t).cos(), atol=1e-6)
    flipped = Positional(8, shift=shift, cosine_first=True)(t)
    assert torch.equal(flipped, torch.cat((e[:, 4:], e[:, :4]), 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Downsample((1.0, 2.0, 1.0)), "even number"),
        (lambda: Upsample((1.0, -1.0)), "sum"),
        (lambda: Positional(7), "features=7"),
        (lambda: small(widths=()), "leave nothing"),
        (lambda: small(attention_down=(2,)), "level 2"),
        (lambda: ScoreUNet(networks.ddpm(3, width=132)), "multiples of 32"),
        (lambda: ScoreUNet(small(block=networks.BlockSpec(heads=3))), "3 attention heads"),
        (lambda: ScoreUNet(small())(torch.zeros(1, 3, 8, 8), torch.ones(1)), "2 channels"),
        (lambda: ScoreUNet(small())(torch.zeros(1, 2, 8, 7), torch.ones(1)), "8 x 7"),
        (lambda: ScoreUNet(small())(torch.zeros(1, 2, 8, 8), torch.ones(1), torch.zeros(1)), "without classes"),
    ],
)
def test_bad_networks_are_refused_in_one_sentence(make, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["residual in, skip out, sum", "adm"])
def test_transforms_go_through(name: str):
    """Exact likelihoods take many vjps at once; solvers may be mapped over samples and compiled."""
    net = lively(ScoreUNet(VARIANTS[name]).eval()).double()
    x, t = torch.randn(2, 2, 4, 4).double().requires_grad_(), torch.tensor(1.3).double()
    y = net(x, t)
    rows = torch.randn(3, *y.shape).double()
    (together,) = torch.autograd.grad(y, x, rows, is_grads_batched=True, retain_graph=True)
    (first,) = torch.autograd.grad(y, x, rows[0])
    assert torch.allclose(together[0], first)
    mapped = torch.func.vmap(lambda v: net(v[None], t)[0])(x)
    assert torch.allclose(mapped, y)
    traced = torch.compile(net, fullgraph=True, backend="eager")
    assert torch.allclose(traced(x, t), y)
