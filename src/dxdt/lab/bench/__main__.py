"""The benchmarks without the rest of the command line: `python -m dxdt.lab.bench`."""

import tyro

from dxdt.lab.bench.solve import bench

if __name__ == "__main__":
    tyro.cli(bench)
