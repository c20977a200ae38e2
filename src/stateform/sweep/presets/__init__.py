"""Presets: sweeps that ask whether published findings hold, one TOML file each."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import nearest, require

__all__ = ["FOLDER", "file_of", "preset_names"]

FOLDER = Path(__file__).parent
"""Where the presets are."""


def preset_names() -> list[str]:
    """List the names of all presets."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def file_of(source: str | Path) -> Path:
    """Find the file that a path or the name of a preset means.

    Raises:
        StateformError: if there is neither (with the nearest names).
    """
    path = Path(source)
    known = FOLDER / f"{source}.toml"
    if os.path.isfile(path) or path.suffix or len(path.parts) > 1:
        return path
    names = preset_names()
    require(
        str(source) in names, f"there is no file {source}, and no preset of that name: {nearest(str(source), names)}"
    )
    return known
