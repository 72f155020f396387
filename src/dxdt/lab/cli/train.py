"""`dxdt train score`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from dxdt.lab.cli.settings import OPTIONS, defaults, flag, recipe_names, take_config
from dxdt.lab.training.settings import Score


@dataclass(frozen=True)
class Command:
    """Where to train, and what.

    Attributes:
        out: folder of the run; there a run goes on, interrupted or with more steps (--training.steps), another
            learning rate or other pictures, with the settings that it has and what flags change.
        start: begin with the weights and settings of a model: its file, or the folder of its run.
        fresh: start over, deleting what a former run left in the folder.
        quiet: no progress bar.
        score: everything else.
    """

    score: Annotated[Score, tyro.conf.arg(name="")]
    out: Path
    start: Annotated[Path | None, tyro.conf.arg(name="from")] = None
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
    out = Path("runs") / (f"score-{Path(config).stem}" if config else "score")
    settings = _defaults(config, Path(flag(rest, "--out") or out), flag(rest, "--from"), "--fresh" in rest)
    command = tyro.cli(
        Command,
        args=rest,
        default=Command(settings, out),
        prog="dxdt train score",
        description=f"{main.__doc__}\nRecipes: {', '.join(recipe_names())}.",
        config=OPTIONS,
    )
    from dxdt.lab.training.score_model import train_score

    model = train_score(command.score, command.out, start=command.start, fresh=command.fresh, quiet=command.quiet)
    Console().print(
        f"{model.step} steps; the model is [bold]{command.out / 'model.safetensors'}[/bold]", soft_wrap=True
    )


def _defaults(config: str | None, out: Path, start: str | None, fresh: bool) -> Score:
    """Settings that flags change: those of a file, of the run that goes on, or of the model that it begins with."""
    if config is not None:
        return defaults(Score, config)
    if not fresh and (out / "config.json").exists():
        return defaults(Score, str(out / "config.json"))
    if start is not None:
        from dxdt.lab.training.score_model import load_model

        return load_model(Path(start)).settings
    return Score()
