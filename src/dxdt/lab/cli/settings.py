"""Settings on a command line: a file first, then flags that change it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import tyro

from dxdt.lab.runs.config import from_plain, read_config

Settings = TypeVar("Settings")

RECIPES = Path(__file__).parent.parent / "recipes"
"""Files of settings that come with the package, each called by its name."""

OPTIONS = (tyro.conf.FlagCreatePairsOff, tyro.conf.CascadeSubcommandArgs)


def recipe_names() -> list[str]:
    """Return the names of the settings that come with the package."""
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def find_config(name: str) -> Path:
    """Return the file of a recipe's name, or the file of that path.

    Raises:
        FileNotFoundError: there is neither.
    """
    recipe = RECIPES / f"{name}.yaml"
    path = recipe if recipe.exists() else Path(name)
    if not path.exists():
        raise FileNotFoundError(
            f"there are no settings {name}: it is neither a file nor one of the recipes {', '.join(recipe_names())}."
        )
    return path


def take_config(args: list[str]) -> tuple[str | None, list[str]]:
    """Return the value of --config, and the other arguments.

    Raises:
        ValueError: nothing follows it.
    """
    rest, found, k = [], None, 0
    while k < len(args):
        flag, equals, value = args[k].partition("=")
        if flag != "--config":
            rest.append(args[k])
        elif equals:
            found = value
        elif k + 1 < len(args):
            k += 1
            found = args[k]
        else:
            raise ValueError("--config names no file; give the path of a .yaml, .toml or .json file, or a recipe.")
        k += 1
    return found, rest


def flag(args: list[str], name: str) -> str | None:
    """Return the value of a flag, None where it is not given or nothing follows it."""
    for k, arg in enumerate(args):
        head, equals, value = arg.partition("=")
        if head == name:
            return value if equals else args[k + 1] if k + 1 < len(args) else None
    return None


def defaults(kind: type[Settings], config: str | None) -> Settings:
    """Return the settings of a file, the rest by default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has an unknown key, or a value of the wrong type.
    """
    return kind() if config is None else from_plain(kind, read_config(find_config(config)))
