"""The project's files, as tests of standards read them."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from portal.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
VERSION = (ROOT / ".version").read_text().strip()
SETTINGS = {name.upper() for name in Settings.model_fields}


def read(name: str) -> str:
    """Content of a file, by its path from the root."""
    return (ROOT / name).read_text()


def load(name: str) -> Any:
    """Content of a YAML file."""
    return yaml.safe_load(read(name))


def tracked() -> list[str]:
    """Files that Git knows and that are there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
