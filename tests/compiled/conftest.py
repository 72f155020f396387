"""Programs of their own for the tests that count them, and no silent eager run for the others."""

import importlib
import warnings

import pytest

ENGINE = importlib.import_module("dxdt.diffeq.programs.engine")
COMPILED = importlib.import_module("dxdt.diffeq.compiled.forward")
FUNCTIONS = importlib.import_module("dxdt.compiler.compile")
FALLBACK = importlib.import_module("dxdt.diffeq.programs.eager_fallback")
LIFTED = importlib.import_module("dxdt.diffeq.programs.scalars")


@pytest.fixture
def fresh(monkeypatch):
    """No programs, no fields looked at and no warnings given yet."""
    monkeypatch.setattr(ENGINE, "_program", ENGINE._Programs(256))
    monkeypatch.setattr(ENGINE, "_sizes", ENGINE.Sizes())
    monkeypatch.setattr(COMPILED, "_checked", {})
    monkeypatch.setattr(FALLBACK, "_warned", set())
    monkeypatch.setattr(LIFTED, "_met", {})
    monkeypatch.setattr(LIFTED, "_fixed", set())


@pytest.fixture
def traced(fresh, monkeypatch):
    """Programs are traced and run as traced, without generating code; the list has their graphs."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(FUNCTIONS, "backend", backend)
    return graphs


@pytest.fixture
def strict():
    """A solve that runs eager although it was to be compiled is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile=True runs eager")
        yield
