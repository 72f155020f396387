"""`dxdt bench NAME`: one command for all benchmarks; each is imported when it is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

import tyro

__all__ = ["BENCHES", "bench_command"]

BENCHES = {
    "solve": ("solve", "bench", "ODE solves beside torchdiffeq, torchode and diffrax."),
    "scaling": ("scaling", "scaling", "Curves over batch, width, steps and tolerance."),
    "ensemble": ("ensemble", "bench_ensemble", "Thousands of Lorenz systems."),
    "brownian": ("brownian", "bench_brownian", "Queries of Brownian paths beside torchsde and diffrax."),
    "sde": ("sde", "bench_sde", "SDE solves beside torchsde and diffrax."),
    "sample": ("sample", "bench_sample", "Samplers beside diffusers and k-diffusion."),
    "train": ("train", "bench_train", "Steps of training beside a plain PyTorch loop."),
    "startup": ("startup", "bench_startup", "Seconds until the command line and imports answer."),
}
"""Name -> module, function, one line."""


def bench_command(args: Sequence[str]) -> None:
    """Run the benchmark that the first argument names, `solve` where it names none."""
    given = list(args)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given = ["solve", *given]
    if given[0] in BENCHES:
        module, function, _ = BENCHES[given[0]]
        run = getattr(import_module(f"benchmarks.{module}"), function)
        tyro.cli(run, args=given[1:], prog=f"dxdt bench {given[0]}", config=(tyro.conf.FlagCreatePairsOff,))
        return
    tyro.extras.subcommand_cli_from_dict(
        {name: _stand_in(line) for name, (_, _, line) in BENCHES.items()},
        args=given,
        prog="dxdt bench",
        description="Time dxdt and the peers that are installed, side by side in one process.",
    )


def _stand_in(line: str) -> Callable[[], None]:
    def command() -> None: ...

    command.__doc__ = line
    return command
