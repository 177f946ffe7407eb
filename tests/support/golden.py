"""Files in tests/golden: what the portal promises, reviewed like code. `UPDATE_GOLDEN=1` writes them anew."""

import os
from pathlib import Path

from portal.settings import ROOT

DIRECTORY = ROOT / "tests" / "golden"


def same_as_golden(name: str, text: str) -> None:
    """Compare with a golden file, or write it."""
    path: Path = DIRECTORY / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text, f"tests/golden/{name} differs: look at the change, then accept it with UPDATE_GOLDEN=1"
