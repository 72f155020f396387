"""Equations of the pages, `$...$` and `$$...$$`, become MathML when the pages are built: no script, nothing fetched."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
_BLOCK = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.S)


def on_page_content(content: str, **_: Any) -> str:
    """Replace the marks of pymdownx.arithmatex, as mkdocs calls it for each page."""
    content = _BLOCK.sub(lambda m: convert(html.unescape(m[1].strip()), display="block"), content)
    return _INLINE.sub(lambda m: convert(html.unescape(m[1].strip())), content)
