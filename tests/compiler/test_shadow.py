"""The walk through generated programs finds what they must not do: each fault is written into one that is right."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._higher_order_ops.while_loop import while_loop

from dxdt.compiler.backend import traced
from dxdt.compiler.native import program, translate
from shadow import Walk

F64 = torch.float64
FIRST, SECOND = nn.Linear(24, 24, dtype=F64), nn.Linear(24, 24, dtype=F64)


def field(value, x):
    z = SECOND(torch.tanh(FIRST(torch.cos(value + x))))
    return z.sum(-1, keepdim=True) - torch.cat([z[:, 1:], z[:, :1]], 1) * z


@pytest.fixture(scope="module")
def source():
    """A program with products, reductions and arrays that share memory."""
    found = []

    def build(graph, inputs):
        found.append(translate(graph))
        return graph.forward

    def run(x):
        body = lambda i, value: (i + 1, field(value, x))  # noqa: E731
        return while_loop(lambda i, value: i < 3, body, (torch.zeros((), dtype=torch.int64), x.clone()))

    for net in (FIRST, SECOND):
        net.requires_grad_(False)
    backend = lambda graph, inputs: traced(graph, inputs, build)  # noqa: E731
    torch.compile(run, backend=backend, fullgraph=True, dynamic=False)(torch.randn(7, 24, dtype=F64))
    return found[0]


def changed(source, pattern, by, count=1):
    text, made = re.subn(pattern, by, source.text, count=count, flags=re.S)
    assert made and text != source.text
    return replace(source, text=text)


def together(source):
    """All large arrays in one place."""
    return changed(source, r"const long AT_(\w+) = \d+;", r"const long AT_\1 = 0;", 0)


def early(source):
    """What follows the first product of the loop before it."""
    return changed(source, r"(for \(;;\).*?)(\n    product<[^\n]*)(.*?\n    }\n)", r"\1\3\2")


def beyond(source):
    """A loop one element longer than its arrays."""
    return changed(source, r"(for \(;;\) \{.*?i\d < )24;", r"\g<1>25;")


def replaced(source):
    """The next value takes the place of the one that is carried before that is read."""
    name = re.search(r"double\* const (c\d+) =", source.text)[1]
    return changed(source, "break;", f"break;\n    for (long i0 = 0; i0 < 168; i0++) {{\n      {name}[i0] = 0;\n    }}")


def partly(source):
    """The last rows of what is carried keep their old values."""
    return changed(source, r"(.*i0 < )168(; i0\+\+\) \{\n\s*c)", r"\g<1>160\2")


def missing(source):
    """A result is not filled."""
    return changed(source, r"(.*i0 < )168(; i0\+\+\) \{\n\s*o)", r"\g<1>160\2")


FAULTS = {
    together: "overwritten|share memory|before it is written",
    early: "before it is written|not declared",
    beyond: "outside|before it is written",
    replaced: "after its next value|before it is written",
    partly: "a part of",
    missing: "not complete",
}


def test_a_right_program_passes(source):
    assert Walk(source).check()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_faults_are_found(fault, source):
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        Walk(fault(source)).check()


def test_programs_of_the_tests_are_walked():
    assert program._Translator.run.__name__ == "walked"
