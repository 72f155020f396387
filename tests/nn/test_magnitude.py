"""The magnitude-preserving network: magnitudes, formulas, invariance to the scale of weights, bad input."""

import pytest
import torch
from torch import nn

from dxdt.nn import MagnitudeArchitecture, MagnitudeUNet, edm2
from dxdt.nn.magnitude import MagnitudeFourier, MagnitudeWeight, beside, blend, silu, unit

SMALL = edm2(2, width=16, multipliers=(1, 4), blocks=1, attention=(1,), labels=3)


def lively(architecture: MagnitudeArchitecture = SMALL) -> MagnitudeUNet:
    net = MagnitudeUNet(architecture).eval()
    for name, p in net.named_parameters():
        if name.endswith("gain"):
            nn.init.ones_(p)
    return net


def size(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_layers_keep_the_magnitude():
    x, y = torch.randn(64, 40, 8, 8), torch.randn(64, 24, 8, 8)
    assert size(silu(x)) == pytest.approx(1, abs=0.01)
    assert size(unit(3 * x, (1,))) == pytest.approx(1, abs=1e-3)
    assert size(MagnitudeWeight(40, 30, 1)(x)) == pytest.approx(1, abs=0.03)
    assert size(MagnitudeWeight(40, 30)(x[:, :, 0, 0])) == pytest.approx(1, abs=0.05)
    assert size(blend(x, torch.randn_like(x), 0.3)) == pytest.approx(1, abs=0.02)
    assert size(MagnitudeFourier(512)(torch.randn(256))) == pytest.approx(1, abs=0.02)
    for t in (0.5, 0.2):
        both = beside(x, y, t)
        assert size(both) == pytest.approx(1, abs=0.02)
        shares = [both[:, :40].square().sum().item(), both[:, 40:].square().sum().item()]
        assert shares[1] / shares[0] == pytest.approx((t / (1 - t)) ** 2, rel=0.05)


def test_the_scale_of_a_weight_does_not_count_and_projection_removes_it():
    layer = MagnitudeWeight(16, 8, 3).double()
    x = torch.randn(2, 16, 5, 5).double()
    before = layer(x).detach()
    with torch.no_grad():
        layer.weight *= 7
    assert torch.allclose(layer(x), before, rtol=1e-3)
    layer.project_()
    assert torch.allclose(layer.weight.square().mean((1, 2, 3)), torch.ones(8).double(), atol=1e-3)
    assert torch.allclose(layer(x), before, rtol=2e-3)


def test_a_new_network_is_at_rest_and_a_lively_one_keeps_magnitudes():
    x, t = torch.randn(4, 2, 8, 8), torch.randn(4)
    assert MagnitudeUNet(SMALL)(x, t, torch.tensor([0, 1, 2, 0])).abs().max() == 0
    assert 0.5 < size(lively()(x, t, torch.tensor([0, 1, 2, 0]))) < 2


def test_samples_do_not_mix_and_level_and_class_are_heard():
    net = lively().double()
    x, t, y = torch.randn(3, 2, 4, 8).double(), torch.randn(3).double(), torch.tensor([0, 1, 2])
    together = net(x, t, y)
    alone = torch.cat([net(x[k : k + 1], t[k], y[k : k + 1]) for k in range(3)])
    assert torch.allclose(together, alone, rtol=1e-9, atol=1e-9)
    assert (net(x, t + 1, y) - together).abs().max() > 1e-4
    assert (net(x, t, y.flip(0)) - together).abs().max() > 1e-4
    assert torch.allclose(net(x, t, torch.eye(3).double()), together)


def test_every_parameter_is_used():
    net = lively()
    net(torch.randn(2, 2, 4, 4), torch.randn(2), torch.tensor([1, 2])).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_smallest_network_has_its_published_size():
    with torch.device("meta"):
        net = MagnitudeUNet(edm2(4, width=128))
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == 125


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MagnitudeArchitecture(widths=()), "leave nothing"),
        (lambda: MagnitudeArchitecture(attention=(7,)), "level 7"),
        (lambda: MagnitudeArchitecture(widths=(16, 24), attention=()), "heads of 64"),
        (lambda: lively()(torch.zeros(1, 3, 8, 8), torch.zeros(1)), "2 channels"),
        (lambda: lively()(torch.zeros(1, 2, 8, 7), torch.zeros(1)), "2 divides"),
        (lambda: lively()(torch.zeros(1, 2, 8, 8), torch.zeros(1), torch.zeros(1, 4)), "3 classes"),
        (
            lambda: lively(edm2(1, width=64, multipliers=(1,), blocks=1, attention=(), labels=0))(
                torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1)
            ),
            "without classes",
        ),
    ],
)
def test_bad_networks_are_refused_in_one_sentence(make, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
