"""`dxdt bench NAME`: one command for all benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from benchmarks import BENCHES

__all__ = ["bench_command"]


def bench_command(args: Sequence[str]) -> None:
    """Run the benchmark that the first argument names, `solve` where it names none."""
    given = list(args)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given = ["solve", *given]
    tyro.extras.subcommand_cli_from_dict(
        BENCHES,
        args=given,
        prog="dxdt bench",
        description="Time dxdt and the peers that are installed, side by side in one process.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
