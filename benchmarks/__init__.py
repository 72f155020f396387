"""Benchmarks against the peers that are installed: `dxdt bench solve`, `scaling`, `ensemble` and others."""

from benchmarks.brownian import bench_brownian
from benchmarks.ensemble import bench_ensemble
from benchmarks.sample import bench_sample
from benchmarks.scaling import scaling
from benchmarks.sde import bench_sde
from benchmarks.solve import bench
from benchmarks.train import bench_train

__all__ = [
    "BENCHES",
    "bench",
    "bench_brownian",
    "bench_ensemble",
    "bench_sample",
    "bench_sde",
    "bench_train",
    "scaling",
]

BENCHES = {
    "solve": bench,
    "scaling": scaling,
    "ensemble": bench_ensemble,
    "brownian": bench_brownian,
    "sde": bench_sde,
    "sample": bench_sample,
    "train": bench_train,
}
"""Benchmarks by name."""
