"""The benchmarks without the rest of the command line: `python -m benchmarks`."""

import sys

from benchmarks.command import bench_command

if __name__ == "__main__":
    bench_command(sys.argv[1:])
