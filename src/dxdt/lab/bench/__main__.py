"""The benchmarks without the rest of the command line: `python -m dxdt.lab.bench`."""

import sys

from dxdt.lab.bench.command import bench_command

if __name__ == "__main__":
    bench_command(sys.argv[1:])
