"""The generator: published vectors, distribution, independence, and the same bits however run."""

import numpy as np
import pytest
import torch

from dxdt.ops.random import generator as random

ONES = 0xFFFFFFFF
# Random123's known-answer file for philox4x32-10: counter, key, output.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
@pytest.mark.parametrize("hold", [torch.tensor, np.array, int])
def test_known_answers(counter, key, expected, hold):
    words = random.philox(tuple(hold(c) for c in counter), key)
    assert tuple(int(w) for w in words) == expected


def test_counter_layout():
    """component -> word and block, row -> c1, node -> c2 (low) and c3 (high), seed -> key."""
    seed, row, node, component = 0x299F31D0A4093822, 0x85A308D3, 0x0370734413198A2E, 4 * 0x243F6A88
    drawn = random.bits(seed, row, node, component + torch.arange(4))
    assert tuple(drawn.tolist()) == VECTORS[2][2]


def test_seeds_of_any_size():
    for seed in (0, 1, -1, 2**63, 2**64 - 1, -(2**63), 2**64 + 5):
        a = random.normals(seed, torch.arange(3), 0, 5)
        assert torch.equal(a, random.normals(random.seed_tensor(seed), torch.arange(3), 0, 5))
    assert torch.equal(random.normals(2**64 + 5, torch.arange(3), 0, 5), random.normals(5, torch.arange(3), 0, 5))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 17])
def test_a_run_is_its_components(size):
    row, node = torch.arange(4)[:, None], torch.arange(3) + 2**40
    run = random.normals(9, row, node, size, dtype=torch.float64)
    point = random.normal(9, row[..., None], node[..., None], torch.arange(size), dtype=torch.float64)
    assert torch.equal(run, point)
    for c in range(size):
        assert torch.equal(random.normal(9, row, node, c, dtype=torch.float64), run[..., c])


def test_box_muller():
    """The polynomials against the library functions they stand for."""
    w = random.bits(3, torch.arange(50_000), 0, torch.arange(2)[:, None])
    u, q = (w[0].double() + 0.5) * 2.0**-32, w[1].double() * 2.0**-31 - 1
    r = torch.sqrt(-2 * torch.log(u)) * (1 - 2 * (w[1] & 1))
    z = random.normals(3, torch.arange(50_000), 0, 2, dtype=torch.float64)
    expected = torch.stack((r * torch.cos(torch.pi / 2 * q), r * torch.sin(torch.pi / 2 * q)), -1)
    assert (z - expected).abs().max() < 1e-11


@pytest.mark.parametrize("word", [0, 1, ONES - 1, ONES])
def test_extreme_words_are_finite(word):
    for other in (0, 1, 2**31, ONES):
        z = random._pair(torch.tensor([word]), torch.tensor([other]))
        assert all(torch.isfinite(x).all() and x.abs().max() < 6.8 for x in z)


def test_float32_is_float64_rounded():
    a = random.normals(1, torch.arange(100), 5, 7, dtype=torch.float64)
    assert torch.equal(a.float(), random.normals(1, torch.arange(100), 5, 7))


def kolmogorov(u):
    """sqrt(n) sup |F_n - u| for numbers that should be uniform; 2.3 has probability 5e-5."""
    u = u.flatten().double().sort().values
    n = len(u)
    grid = torch.arange(n + 1, dtype=torch.float64) / n
    return (torch.maximum((u - grid[:-1]).max(), (grid[1:] - u).max()) * n**0.5).item()


def check_normals(z):
    n = z.numel()
    assert abs(z.mean()) * n**0.5 < 4
    for power, moment, variance in ((2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs((z**power).mean() - moment) < 4 * (variance / n) ** 0.5, power
    assert kolmogorov(torch.special.ndtr(z)) < 2.3


@pytest.mark.parametrize("shape", [(400, 1, 500), (1, 1, 200_000), (200_000, 1, 1), (1, 200_000, 1)])
def test_normal_distribution(shape):
    rows, nodes, size = shape
    check_normals(random.normals(12, torch.arange(rows)[:, None], torch.arange(nodes), size, dtype=torch.float64))


@pytest.mark.slow
def test_normal_distribution_of_eight_million():
    for seed in range(4):
        check_normals(random.normals(seed, torch.arange(2000), 7, 1000, dtype=torch.float64))


def test_uniform_and_signs():
    row, component = torch.arange(400)[:, None], torch.arange(500)
    n = 200_000
    for dtype in (torch.float32, torch.float64):
        u = random.uniform(4, row, 3, component, dtype=dtype)
        assert u.dtype == dtype and u.min() > 0 and u.max() < 1 and kolmogorov(u) < 2.3
    sign = random.rademacher(4, row, 3, component)
    assert set(sign.unique().tolist()) == {-1.0, 1.0} and abs(sign.mean()) * n**0.5 < 4
    ones = sum((random.bits(4, row, 3, component) >> k & 1).double().mean() for k in range(32))
    assert abs(ones - 16) < 4 * (8 / n) ** 0.5


def test_neighbours_are_independent():
    """No correlation of values or squares between neighbouring rows, nodes, components, seeds."""
    n = 100
    z = torch.stack(
        [
            random.normals(s, torch.arange(n)[:, None], torch.arange(n), 10, dtype=torch.float64)
            for s in (0, 1, 2**32, 2**33)
        ]
    )
    for axis in range(4):
        for lag in (1, 2):
            a, b = z.narrow(axis, lag, z.shape[axis] - lag), z.narrow(axis, 0, z.shape[axis] - lag)
            assert abs((a * b).mean()) * a.numel() ** 0.5 < 4
            assert abs(((a * a - 1) * (b * b - 1)).mean() / 2) * a.numel() ** 0.5 < 4


def test_words_fill_a_cube():
    """Chi-squared of pairs of neighbouring words over 16 x 16 cells."""
    w = random.bits(8, torch.arange(1000)[:, None], 1, torch.arange(256)) >> 28
    counts = torch.bincount((w[:, 1:] * 16 + w[:, :-1]).flatten(), minlength=256).double()
    expected = counts.sum() / 256
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - 255) < 4 * 510**0.5


def test_bits_do_not_depend_on_the_batch():
    big = random.normals(5, torch.arange(257), 11, 301, dtype=torch.float64)
    for rows, start, size in ((1, 0, 1), (3, 100, 7), (33, 200, 300), (257, 0, 5)):
        part = random.normals(5, torch.arange(start, start + rows), 11, size, dtype=torch.float64)
        assert torch.equal(part, big[start : start + rows, :size])


def test_numpy_and_tensors_agree():
    a = random.normals(5, np.arange(9), 11, 6, dtype=torch.float64)
    assert isinstance(a, np.ndarray)
    assert np.array_equal(a, random.normals(5, torch.arange(9), 11, 6, dtype=torch.float64).numpy())
