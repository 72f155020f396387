"""Every snippet of the README runs, in order, in one session."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_snippets_of_the_readme_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)  # noqa: S102
    assert "Solution" in capsys.readouterr().out
    drop, sol = names["h"], names["x"]
    assert abs(float(drop.grad) - (20 / 8) ** 0.5 / 20) < 1e-9
    assert tuple(sol.shape) == (16, 3)
