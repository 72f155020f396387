"""Benchmarks against the peers that are installed: `dxdt bench solve`, `scaling`, `ensemble` and others."""

from dxdt.lab.bench.brownian import bench_brownian
from dxdt.lab.bench.ensemble import bench_ensemble
from dxdt.lab.bench.sample import bench_sample
from dxdt.lab.bench.scaling import scaling
from dxdt.lab.bench.sde import bench_sde
from dxdt.lab.bench.solve import bench
from dxdt.lab.bench.train import bench_train

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
