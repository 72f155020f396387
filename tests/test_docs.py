"""The reference names every exported name once, and the pages are all in the navigation."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ROOMS = {
    "solve": "dxdt",
    "paths": "dxdt.paths",
    "implicit": "dxdt.implicit",
    "models": "dxdt.models",
    "mcmc": "dxdt.mcmc",
    "diffusion": "dxdt.diffusion",
    "chains": "dxdt.diffusion.chains",
    "nn": "dxdt.nn",
    "interop": "dxdt.interop",
    "compat": "dxdt.compat.torchdiffeq",
}
# Shown with the models, of which `regularise` is a module.
ELSEWHERE = {"__version__", "NeuralODE", "NeuralSDE", "regularise"}


@pytest.mark.parametrize("page", ROOMS)
def test_the_reference_is_complete(page):
    names = [
        entry.rsplit(".", 1)[-1] for entry in re.findall(r"^::: (\S+)$", (DOCS / f"api/{page}.md").read_text(), re.M)
    ]
    assert len(names) == len(set(names))
    if page == "diffusion":  # names of its inner room lie on that room's page
        names += importlib.import_module(ROOMS["chains"]).__all__
    exported = set(importlib.import_module(ROOMS[page]).__all__) - (ELSEWHERE if page == "solve" else {"regularise"})
    assert exported <= set(names), f"docs/api/{page}.md lacks {sorted(exported - set(names))}"


@pytest.mark.parametrize("page", ROOMS)
def test_entries_of_the_reference_exist(page):
    for entry in re.findall(r"^::: (\S+)$", (DOCS / f"api/{page}.md").read_text(), re.M):
        module, name = entry.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), name), entry


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")]
    assert [p for p in pages if f": {p}" not in navigation] == []


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_changelog_is_whole():
    """Merges that kept both sides left halves of sentences: repeated lines, and lines that go on after a full stop."""
    text = (ROOT / "CHANGELOG.md").read_text()
    lines = [line for line in text.splitlines() if len(line) > 40]
    assert sorted({line for line in lines if lines.count(line) > 1}) == []
    assert re.findall(r"\.\n  [a-z].*", text) == []
    headings = re.findall(r"^##.*$", text.partition("\n## [0")[0], re.M)
    assert len(headings) == len(set(headings))
