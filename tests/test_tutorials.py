"""The pages of the documentation that show how to do things do them: Python and commands, in order, in one session."""

import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch

from dxdt.lab.cli import main

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(p.relative_to(DOCS) for p in [*(DOCS / "tutorials").glob("*.md"), DOCS / "series.md", DOCS / "index.md"])


def pieces(text: str) -> list[tuple[str, str]]:
    """The blocks of Python and of commands, each with its kind."""
    return re.findall(r"^```(python|console)\n(.*?)^```", text, re.S | re.M)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_runs_as_it_stands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    found = pieces((DOCS / page).read_text())
    assert found
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # nothing is shown that will go
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(?!page|dxdt)")
        for kind, text in found:
            if kind == "python":
                exec(compile(text, str(page), "exec"), names)  # noqa: S102
            else:
                for line in text.splitlines():
                    words = shlex.split(line.removeprefix("$ "))
                    assert words[0] == "dxdt"
                    main(words[1:])


def test_every_page_of_the_tutorials_is_here():
    assert {p.stem for p in PAGES} >= {"neural-ode", "first-sde", "sample-checkpoint", "own-images", "series", "index"}
