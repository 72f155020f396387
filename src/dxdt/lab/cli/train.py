"""`dxdt train score`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from dxdt.lab.cli.settings import OPTIONS, defaults, recipe_names, take_config
from dxdt.lab.training.settings import Score


@dataclass(frozen=True)
class Command:
    """Where to train, and what.

    Attributes:
        out: folder of the run; an interrupted run goes on there when the same command is given again.
        fresh: start over, deleting what a former run left in the folder.
        quiet: no progress bar.
        score: everything else.
    """

    score: Annotated[Score, tyro.conf.arg(name="")]
    out: Path
    fresh: bool = False
    quiet: bool = False


def main(args: list[str]) -> None:
    """Train a score model of images.

    `--config FILE` (.yaml, .toml, .json, or a recipe's name) gives settings, flags change them; the
    parts process, answer, objective and training.average are chosen by name, as in `process:ve`.
    Under torchrun or accelerate's launcher the batch is shared by the processes.
    """
    config, rest = take_config(args)
    if not rest or rest[0].startswith("-"):
        rest = ["--help"] if not rest or {"-h", "--help"} & {*rest} else rest
    elif rest[0] != "score":
        raise ValueError(f"there is nothing to train called {rest[0]}; known is score.")
    else:
        rest = rest[1:]
    settings = defaults(Score, config)
    out = Path("runs") / (f"score-{Path(config).stem}" if config else "score")
    command = tyro.cli(
        Command,
        args=rest,
        default=Command(settings, out),
        prog="dxdt train score",
        description=f"{main.__doc__}\nRecipes: {', '.join(recipe_names())}.",
        config=OPTIONS,
    )
    from dxdt.lab.training.score_model import train_score

    model = train_score(command.score, command.out, fresh=command.fresh, quiet=command.quiet)
    Console().print(
        f"{model.step} steps; the model is [bold]{command.out / 'model.safetensors'}[/bold]", soft_wrap=True
    )
