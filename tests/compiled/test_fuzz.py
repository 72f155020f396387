"""Random solves by generated code answer as the eager loop does; ``python tests/fuzz.py 0 1000`` tries more."""

import pytest

from fuzz import compare, make

SEEDS = range(200, 230)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_random_solves(seed, fresh):
    wrong, _ = compare(make(seed))
    assert not wrong
