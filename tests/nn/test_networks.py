"""Networks: formulas, independence of samples, sizes, the accuracy of the fast tanh."""

import pytest
import torch
from torch import nn

from dxdt.nn import (
    MLP,
    ConcatSquash,
    ConcatSquashField,
    FastTanh,
    Fourier,
    MLPField,
    Sinusoidal,
    UNet,
    fast_tanh,
    variance_scaling_,
)


def test_fast_tanh_is_within_its_promise_odd_and_bounded():
    x = torch.linspace(-12, 12, 400_001)
    y = fast_tanh(x)
    assert (y.double() - x.double().tanh()).abs().max() < 4e-7
    assert torch.equal(y, -fast_tanh(-x))
    assert y.abs().max() <= 1
    assert FastTanh()(torch.tensor(float("nan"))).isnan()


def test_fast_tanh_has_the_slope_of_tanh():
    x = torch.linspace(-7, 7, 20_001, requires_grad=True)
    (slope,) = torch.autograd.grad(fast_tanh(x).sum(), x)
    assert (slope - (1 - x.tanh() ** 2)).abs().max() < 2e-6


@pytest.mark.parametrize("embed", [Sinusoidal(16), Fourier(16, seed=3)])
def test_embeddings_lie_on_circles_and_add_one_axis(embed: nn.Module):
    t = torch.linspace(-3, 3, 10).reshape(2, 5)
    e = embed(t)
    assert e.shape == (2, 5, 16)
    assert torch.allclose(e[..., :8] ** 2 + e[..., 8:] ** 2, torch.ones(2, 5, 8))
    assert torch.allclose(embed(t[1, 2]), e[1, 2], atol=1e-6)


def test_fourier_frequencies_are_kept_with_the_module():
    other = Fourier(16, seed=4)
    other.load_state_dict(Fourier(16, seed=3).state_dict())
    assert torch.equal(other.frequencies, Fourier(16, seed=3).frequencies)


def test_variance_scaling_has_the_variance_it_names():
    w = variance_scaling_(torch.empty(300, 200, 3, 3), 0.5)
    assert w.var().item() == pytest.approx(0.5 / (9 * 250), rel=0.02)


def test_concat_squash_is_its_formula():
    layer = ConcatSquash(3, 2).double()
    t, y = torch.tensor(0.7).double(), torch.randn(5, 3).double()
    w, b = layer.linear.weight, layer.linear.bias
    gate = torch.sigmoid(layer.gate.weight[:, 0] * t + layer.gate.bias)
    assert torch.allclose(layer(t, y), (y @ w.T + b) * gate + layer.shift.weight[:, 0] * t)


@pytest.mark.parametrize("field", [MLPField(3, width=8), ConcatSquashField(3, width=8)])
def test_a_field_takes_one_time_or_one_for_each_row(field: nn.Module):
    y, t = torch.randn(4, 3), torch.rand(4)
    rows = torch.stack([field(t[k], y[k : k + 1])[0] for k in range(4)])
    assert torch.allclose(field(t, y), rows, atol=1e-6)


def test_an_autonomous_field_ignores_time():
    field = MLPField(2, autonomous=True)
    y = torch.randn(4, 2)
    assert torch.equal(field(torch.tensor(0.0), y), field(torch.tensor(9.0), y))


def test_an_mlp_without_hidden_layers_is_linear():
    net = MLP(3, 2, depth=0).double()
    x, y = torch.randn(2, 5, 3).double()
    assert torch.allclose(net(x + 2 * y) - net(x), 2 * (net(y) - net(torch.zeros_like(y))))


def lively(net: UNet) -> UNet:
    """The network with weights that do not start it at rest."""
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (5, 7), (1, 3)])
def test_unet_keeps_any_image_size(size: tuple[int, int]):
    net = UNet(2, 3, channels=8, multipliers=(1, 2, 2), blocks=1, attention=(1,))
    assert net(torch.randn(2, 2, *size), torch.rand(2)).shape == (2, 3, *size)


def test_unet_starts_at_rest():
    net = UNet(1, channels=8, attention=(0,))
    assert net(torch.randn(3, 1, 8, 8), torch.rand(3)).abs().max() < 1e-3


def test_unet_does_not_mix_samples_and_listens_to_time():
    net = lively(UNet(1, channels=8, multipliers=(1, 2), blocks=1, attention=(0, 1))).double()
    x, t = torch.randn(3, 1, 6, 6).double(), torch.rand(3).double()
    together = net(x, t)
    alone = torch.cat([net(x[k : k + 1], t[k]) for k in range(3)])
    assert torch.allclose(together, alone, rtol=1e-10, atol=1e-10)
    assert (net(x, t + 1) - together).abs().max() > 1e-3


def test_unet_attention_reaches_across_the_image():
    net = lively(UNet(1, channels=4, multipliers=(1,), blocks=1, attention=(0,), features=8))
    x = torch.randn(1, 1, 32, 32, requires_grad=True)
    (slope,) = torch.autograd.grad(net(x, torch.tensor(0.3))[0, 0, 0, 0], x)
    assert slope[0, 0, -1, -1].abs() > 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Sinusoidal(7), "features=7"),
        (lambda: Sinusoidal(8, low=2.0, high=1.0), "low=2.0"),
        (lambda: Fourier(0), "features=0"),
        (lambda: MLP(0, 2), "in_features=0"),
        (lambda: MLP(2, 2, depth=-1), "depth=-1"),
        (lambda: ConcatSquashField(2, width=0), "width=0"),
        (lambda: UNet(1, multipliers=()), "widths"),
        (lambda: UNet(1, attention=(2,)), "level 2"),
        (lambda: UNet(1, channels=6, heads=4), "4 attention heads"),
        (lambda: UNet(1)(torch.zeros(1, 3, 8, 8), torch.zeros(1)), "1 channels"),
    ],
)
def test_bad_sizes_are_refused_in_one_sentence(make, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_unet_is_made_again_from_its_options():
    net = UNet(2, 3, channels=8, multipliers=(1, 2), blocks=1, attention=(1,), heads=2, dropout=0.1, features=32)
    assert net.options is not None
    again = UNet(**net.options)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert UNet(1, channels=8, embedding=nn.Identity()).options is None
