"""Normals by native code: the bits of numpy, and numpy where there is no compiler."""

import numpy as np
import pytest
import torch

from dxdt.ops import cpp as library
from dxdt.ops.random import generator as random
from dxdt.ops.random import native as normals

native = pytest.mark.skipif(normals.generator() is None, reason="no C++ compiler")
RNG = np.random.default_rng(0)
SHAPES = [((7,), ()), ((7,), (3, 1)), ((1,), ()), ((3,), (2, 3)), ((), (5,)), ((4, 1), (1, 6)), ((2, 1, 3), (5, 1))]


def by_numpy(monkeypatch, *args, **options):
    with monkeypatch.context() as patch:
        patch.setattr(random, "generator", lambda: None)
        return random.normals(*args, **options)


@native
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 33, 513, 2049])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_of_numpy(monkeypatch, size, dtype):
    for rows, nodes in SHAPES:
        for seed in (0, -1, 2**64 - 1, 123456789123):
            row = torch.from_numpy(RNG.integers(0, 2**32, rows))
            node = torch.from_numpy(RNG.integers(-(2**62), 2**62, nodes))
            args, options = (seed, row, node, size), {"first": 8, "dtype": dtype}
            drawn, wanted = random.normals(*args, **options), by_numpy(monkeypatch, *args, **options)
            assert torch.equal(drawn, wanted) and drawn.dtype == wanted.dtype


@native
def test_kinds_of_arguments(monkeypatch):
    row = np.arange(64)[::2]
    for args in [(3, row, 5, 6), (random.seed_tensor(3), torch.from_numpy(row), 5, 6), (3, 9, np.arange(40), 2)]:
        drawn, wanted = random.normals(*args), by_numpy(monkeypatch, *args)
        assert type(drawn) is type(wanted)
        assert np.array_equal(np.asarray(drawn), np.asarray(wanted))


@native
def test_numpy_serves_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("DXDT_CACHE", str(tmp_path))
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    normals.generator.cache_clear()
    try:
        assert normals.generator() is None
        without = random.normals(0, torch.arange(100), 1, 5)
    finally:
        normals.generator.cache_clear()
    monkeypatch.undo()
    assert torch.equal(without, random.normals(0, torch.arange(100), 1, 5))


def test_a_text_that_does_not_compile_is_refused(tmp_path):
    with pytest.raises(library.Refused):
        library.build("c++", ["-shared", "-fPIC"], "not C++", tmp_path)
    assert not list(tmp_path.glob("*.so"))
