"""The feature distance: against its formula, merged parts, its error bar, and networks by name."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from dxdt.lab.data.readers import open_images
from dxdt.lab.evaluation.classifiers import mnist_cnn, resnet20
from dxdt.lab.evaluation.features import feature_net
from dxdt.lab.evaluation.fidelity import Moments, feature_distance, features_of, frechet
from dxdt.lab.evaluation.pretrained import MNIST_DDPM_LEVELS, mnist_ddpm


def test_the_distance_is_that_of_the_matrix_root():
    x = torch.randn(200, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    y = 0.3 + torch.randn(150, 6, dtype=torch.float64)
    c, d = np.cov(x.numpy().T), np.cov(y.numpy().T)
    root = sqrtm(c @ d).real
    want = float(((x.mean(0) - y.mean(0)) ** 2).sum()) + np.trace(c + d - 2 * root)
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(want, rel=1e-8)
    assert frechet(Moments.of(x), Moments.of(x)) == pytest.approx(0, abs=1e-8)


def test_the_distance_needs_no_full_rank():
    x = torch.randn(5, 40, dtype=torch.float64)
    y = x + 2.0
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(4.0 * 40, rel=1e-6)


@pytest.mark.parametrize("cut", [1, 37, 99])
def test_moments_of_parts_merge(cut: int):
    x = 5 + torch.randn(100, 4, dtype=torch.float64)
    merged = Moments.of(x[:cut]).merge(Moments.of(x[cut:]))
    whole = Moments.of(x)
    assert merged.count == 100
    assert torch.allclose(merged.mean, whole.mean)
    assert torch.allclose(merged.covariance, whole.covariance)


def test_the_standard_error_is_the_spread_over_new_sets():
    torch.manual_seed(0)
    values, errors = [], []
    for seed in range(30):
        x, y = torch.randn(2, 300, 3, dtype=torch.float64)
        found = feature_distance(1.0 + x, y, resamples=30, seed=seed)
        values.append(found.value)
        errors.append(found.standard_error)
    assert 0.6 < np.mean(errors) / np.std(values, ddof=1) < 1.6
    assert math.isnan(feature_distance(x, y, resamples=0).standard_error)


def test_bad_features_are_refused():
    with pytest.raises(ValueError, match="no finite table"):
        Moments.of(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match="no finite table"):
        Moments.of(torch.empty(0, 3))
    with pytest.raises(ValueError, match="at least two"):
        frechet(Moments.of(torch.ones(1, 2)), Moments.of(torch.ones(3, 2)))
    with pytest.raises(ValueError, match="one network for both"):
        frechet(Moments.of(torch.randn(3, 2)), Moments.of(torch.randn(3, 4)))
    with pytest.raises(ValueError, match="a row for each image"):
        features_of(lambda x: x.sum(), [torch.zeros(2, 1, 4, 4)])


def test_feature_networks_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DXDT_DATA", raising=False)
    images = torch.rand(3, 1, 4, 4)
    assert feature_net("torch.nn:Flatten")(images).shape == (3, 16)
    for name, words in {
        "mnist_cnn": "DXDT_DATA",
        "nothing_here": "there is no feature network",
        "torch.nn:Flaten": "cannot be imported",
        "torch:pi": "let it be a network",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            feature_net(name)
    (tmp_path / "net.pt").write_bytes(b"no script")
    with pytest.raises(ValueError, match="no TorchScript"):
        feature_net(str(tmp_path / "net.pt"))


def test_published_classifiers_know_their_images(data: Path):
    for source, make, least in (("mnist", mnist_cnn, 0.975), ("cifar10", resnet20, 0.90)):
        net = make(data)
        levels, labels = open_images(source, "test").read(torch.arange(500))
        with torch.no_grad():
            features = net(levels.float() / 255)
            right = (net.logits(features).argmax(1) == labels).float().mean()
        assert features.shape == (500, 500 if source == "mnist" else 64)
        assert right > least


def test_the_published_ddpm_predicts_noise(data: Path):
    levels, _ = open_images("mnist", "test").read(torch.arange(128))
    x0 = MNIST_DDPM_LEVELS.dequantise(levels.double(), torch.full(levels.shape, 0.5)).float()
    denoiser = mnist_ddpm(data)
    t = (torch.arange(128) * 7 + 50).double() / 1000
    eps = torch.randn(x0.shape)
    with torch.no_grad():
        error = (denoiser(denoiser.process.perturb(x0, t, eps), t).noise - eps).square().mean()
    assert error < 0.03
