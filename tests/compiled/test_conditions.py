"""The law of ``tests/diffeq/test_conditions.py`` for compiled solves, whose programs are traced and run as traced."""

import warnings

import pytest
import torch

from knowing import RULES, WAYS, gradient_of

COMPILED = ("default", "checkpointed", "backsolve", "reversible")
FEW = ("closure_number", "closure_net", "buffer_written", "eval_then_train")


def holds(rule, way):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="compile=True runs eager")
        before, after = (gradient_of(RULES[rule], True, way, early) for early in (True, False))
    assert len(before) == len(after) > 1
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", FEW)
def test_steps_are_formed_again_under_the_conditions_of_the_solve(traced, way):
    holds("default", way)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", COMPILED)
def test_whatever_the_rule_and_the_way(traced, rule, way):
    holds(rule, way)
