"""Benchmarks against the peers that are installed: `dxdt bench solve`, `brownian`, `sde`."""

from dxdt.lab.bench.brownian import bench_brownian
from dxdt.lab.bench.sde import bench_sde
from dxdt.lab.bench.solve import bench

__all__ = ["NOISY", "bench", "bench_brownian", "bench_sde"]

NOISY = {"brownian": bench_brownian, "sde": bench_sde}
"""Benchmarks of noise by name, each with options of its own."""
