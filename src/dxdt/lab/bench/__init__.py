"""Benchmarks against the peers that are installed: `dxdt bench solve`."""

from dxdt.lab.bench.solve import bench

__all__ = ["bench"]
