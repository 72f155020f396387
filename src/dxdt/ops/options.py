"""Options by name: which a function has, and a sentence for those that it has not."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

__all__ = ["nearest", "options_of", "refuse_unknown"]


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name that is most like a word, as a question, or all of them."""
    names = [*known]
    lower = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(word.lower(), lower, 1, 0.6)
    return f"did you mean {lower[near[0]]}?" if near else f"known are {', '.join(names)}"


@lru_cache
def options_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the options that a function takes by keyword alone."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def refuse_unknown(
    name: str, given: Iterable[str], known: Iterable[str], elsewhere: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuse options that there are not.

    Args:
        name: of the function, for the message.
        given, known: options.
        elsewhere: what other libraries call the options.

    Raises:
        TypeError: an option is not known; the one that is meant, or the nearest, is named.
    """
    options = [*known]
    for option in given:
        if option not in options:
            meant = elsewhere.get(option)
            remedy = f"it is called {meant} here" if meant in options else nearest(option, options)
            raise TypeError(f"{name} has no option {option}: {remedy}")
