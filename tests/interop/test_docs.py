"""The guide's table is what was measured."""

from pathlib import Path

import pytest

from interop.foreign import fingerprint, names

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"


@pytest.mark.parametrize("name", names(asked=True))
def test_the_guide_shows_what_was_measured(name: str):
    said = fingerprint(name)
    network, denoiser = said["largest_difference_of_networks"], said["largest_difference"]
    row = f"| `{name}` | {said['parameters']:,} | {network:.1e} | {denoiser:.1e} |"
    assert row in GUIDE.read_text().splitlines()
