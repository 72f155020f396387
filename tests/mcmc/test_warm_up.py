"""Warm-up: step sizes reach their rate, units reach the widths, in any composition."""

import pytest
import torch

from dxdt.mcmc import (
    HMC,
    MALA,
    Density,
    Energy,
    Repeat,
    Sequence,
    UnadjustedLangevin,
    UnderdampedLangevin,
    run_chains,
    warm_up,
)

WIDTHS = torch.tensor([0.1, 1.0, 5.0, 0.5, 2.0], dtype=torch.float64)
TARGET = Density(lambda x: -0.5 * (x / WIDTHS).square().sum(1))


def start(chains: int = 100) -> torch.Tensor:
    return WIDTHS * torch.randn(chains, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "kernel", [MALA(1e-3), MALA(30.0), HMC(0.01, 4), UnderdampedLangevin(0.01, 1.0, Energy())], ids=repr
)
def test_acceptance_and_units_are_found(kernel):
    found = warm_up(kernel, TARGET, start(), steps=200, seed=1)
    chains = run_chains(found.kernel, TARGET, found.state, draws=20, seed=2)
    assert chains.statistics["acceptance"].mean() == pytest.approx(kernel.rate, abs=0.08)
    scale = found.kernel.scale / found.kernel.scale[1]
    torch.testing.assert_close(scale, WIDTHS, rtol=0.35, atol=0)
    # Warmed up once more in its own units, nothing is left to do.
    assert found.evaluations == 1 + 200 * (kernel.steps if isinstance(kernel, HMC) else 1)


def test_parts_of_a_composition_are_adapted_one_by_one():
    kernel = Sequence((MALA(1e-3), UnadjustedLangevin(0.01), Repeat(HMC(0.2, 2), 2)))
    found = warm_up(kernel, TARGET, start(), steps=300, seed=1, scale=False).kernel
    mala, plain, repeat = found.kernels
    assert plain == UnadjustedLangevin(0.01) and repeat.times == 2
    for part in (mala, repeat):
        chains = run_chains(part, TARGET, start(), draws=20, seed=2)
        rate = part.rate if isinstance(part, MALA) else HMC.rate
        assert chains.statistics["acceptance"].mean() == pytest.approx(rate, abs=0.08)


def test_too_short_a_warm_up_is_refused():
    with pytest.raises(ValueError, match="tell nothing"):
        warm_up(MALA(0.1), TARGET, start(), steps=5)
