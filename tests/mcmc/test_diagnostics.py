"""Diagnostics: numbers of arviz, theory of autoregressive chains, and what cannot be told."""

import math

import pytest
import torch

from dxdt.mcmc import (
    MALA,
    Chains,
    Density,
    autocorrelation,
    ess,
    ess_bulk,
    ess_tail,
    mcse,
    rhat,
    run_chains,
    summary,
    to_arviz,
)
from dxdt.ops.random import normals


def autoregressive(chains: int, draws: int, rho: float, seed: int = 7) -> torch.Tensor:
    z = normals(seed, torch.arange(chains), 0, draws, dtype=torch.float64)
    x = z.clone()
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * z[:, t]
    return x


# ess bulk, tail and mean, rhat and mcse by arviz 0.23.4.
ARVIZ = [
    (2, 8, 0.5, (19.2659197225, 19.2659197225, 19.2659197225, 0.975186275583, 0.228426209625)),
    (4, 51, -0.7, (460.205999133, 125.246884152, 460.205999133, 1.09513808101, 0.0507601739159)),
    (4, 200, 0.9, (57.6496819923, 122.458201396, 57.5404010054, 1.04621522072, 0.124402813544)),
    (20, 100, 0.99, (27.0508678607, 36.1515766639, 26.5911320912, 2.2801073987, 0.161680372209)),
    (50, 30, 0.3, (1063.04570065, 1369.52664952, 1059.41540404, 1.02728260911, 0.0305689942175)),
]


@pytest.mark.parametrize(("chains", "draws", "rho", "numbers"), ARVIZ)
def test_numbers_are_those_of_arviz(chains, draws, rho, numbers):
    x = autoregressive(chains, draws, rho)
    found = [float(f(x)) for f in (ess_bulk, ess_tail, ess, rhat, mcse)]
    assert found == pytest.approx(numbers, rel=1e-10)


def test_they_are_those_of_the_arviz_that_is_installed():
    arviz = pytest.importorskip("arviz", reason="arviz is not installed")
    x = autoregressive(4, 101, 0.8)
    data = to_arviz(x, name="x")
    for method, f in (("bulk", ess_bulk), ("tail", ess_tail), ("mean", ess)):
        assert float(arviz.ess(data, method=method)["x"]) == pytest.approx(float(f(x)), rel=1e-9)
    assert float(arviz.rhat(data)["x"]) == pytest.approx(float(rhat(x)), rel=1e-9)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
def test_effective_draws_of_an_autoregressive_chain(rho):
    x = autoregressive(200, 500, rho)
    expected = x.numel() * (1 - rho) / (1 + rho)
    assert float(ess(x)) == pytest.approx(expected, rel=0.2)
    lags = autocorrelation(x)[:6]
    torch.testing.assert_close(lags, rho ** torch.arange(6, dtype=x.dtype), atol=0.05, rtol=0)
    assert float(rhat(x)) < 1.04


def test_many_quantities_at_once_are_those_one_by_one():
    x = torch.stack([autoregressive(5, 60, 0.5, seed) for seed in range(6)], -1).reshape(5, 60, 2, 3)
    for f in (ess_bulk, ess_tail, ess, rhat, mcse):
        whole = f(x)
        assert whole.shape == (2, 3)
        assert float(whole[1, 2]) == pytest.approx(float(f(x[..., 1, 2])), rel=1e-12)


def test_they_see_chains_that_disagree():
    x = autoregressive(4, 200, 0.0)
    shifted, wider = x + torch.arange(4.0)[:, None], x * torch.tensor([1.0, 1.0, 1.0, 4.0])[:, None]
    assert rhat(shifted) > 1.5 and rhat(wider) > 1.1  # the second by the folded draws
    assert ess_bulk(shifted) < 20


def test_what_cannot_be_told():
    x = autoregressive(3, 40, 0.0)[..., None].repeat(1, 1, 3)
    x[..., 1] = 2.0
    x[1, 7, 2] = torch.nan
    assert ess(x)[1] == 120 and torch.isnan(ess(x)[2]) and torch.isnan(rhat(x)[2])
    for f in (ess, ess_bulk, ess_tail, rhat, mcse):
        with pytest.raises(ValueError, match="too few"):
            f(x[:, :3])
    with pytest.raises(ValueError, match="no lags"):
        autocorrelation(x[:, :1])


def test_a_summary_counts_what_an_effective_draw_costs():
    target = Density(lambda x: -0.5 * x.square().sum(1))
    chains = run_chains(MALA(0.5), target, torch.zeros(20, 2), draws=50, burn_in=10, thin=2, seed=0)
    assert chains.evaluations == 111 and chains.burn_in_evaluations == 11 and chains.evaluations_per_draw == 2
    found = summary(chains)
    torch.testing.assert_close(found.ess_per_1000_evaluations, found.ess_bulk / (20 * 50 * 2) * 1000)
    assert bool((found.ess_per_second > 0).all()) and found.mean.shape == (2,)


class _Arviz:
    """Stands for a version of arviz: keeps what it was given."""

    def __init__(self, version: str) -> None:
        self.__version__ = version

    def from_dict(self, *groups, **named):
        return groups[0] if groups else named


@pytest.mark.parametrize("version", ["0.23.4", "1.2.0"])
def test_the_export_serves_both_major_versions(version, monkeypatch):
    monkeypatch.setattr("dxdt.mcmc.export.require", lambda name, extra: _Arviz(version))
    x = autoregressive(3, 8, 0.0)
    chains = Chains(x, {"acceptance": torch.ones(3, 8)}, 0, 0, 0.0, None)
    data = to_arviz(chains, level=x.exp())
    assert set(data) == {"posterior", "sample_stats"} and set(data["posterior"]) == {"x", "level"}
    assert data["sample_stats"]["acceptance_rate"].shape == (3, 8)
    with pytest.raises(ValueError, match="does not belong"):
        to_arviz(chains, level=x[:, :2])
