"""Benchmarks beside the peers that are installed: `dxdt bench NAME` in a checkout, or `python -m benchmarks NAME`."""
