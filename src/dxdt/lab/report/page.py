"""Reports: one HTML page that explains what is seen, with its pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from dxdt.lab.report.plots import DOTS, SCREEN
from dxdt.lab.runs.files import write_atomic


@dataclass(frozen=True)
class Picture:
    """A PNG and the sentences under it."""

    path: Path
    caption: str

    @property
    def source(self) -> str:
        """The picture as a data URL."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()

    @property
    def width(self) -> int:
        """Pixels of a page that the picture takes, at which all pictures have letters of one size."""
        with Image.open(self.path) as image:
            return round(image.width * SCREEN / DOTS)


@dataclass(frozen=True)
class Table:
    """A table with a head and rows of words or formatted numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of a report: its title, paragraphs, table and pictures, shown in this order."""

    title: str
    text: Sequence[str]
    table: Table | None = None
    pictures: Sequence[Picture] = field(default_factory=tuple)


def write_report(path: Path, title: str, summary: Sequence[str], sections: Sequence[Section], footer: str) -> None:
    """Write the page, self-contained and atomic.

    Args:
        path: of the HTML file.
        title: of the page.
        summary: paragraphs at the top.
        sections: in order.
        footer: one line at the bottom.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("page.html.j2").render(
        title=title, summary=summary, sections=sections, footer=footer
    )
    write_atomic(path, page.encode())
