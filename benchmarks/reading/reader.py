"""What every reader's program needs: the tokens, and a place for what it found."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WORK = Path(sys.argv[1]).resolve()
"""The folder with `base`, the exports and `rows.json`."""
_FOUND = Path(sys.argv[2]).resolve()


def rows() -> list[list[int]]:
    """The rows of tokens, all of one length."""
    return json.loads((WORK / "rows.json").read_text())


def save(found: Mapping[str, np.ndarray], version: str, note: str = "") -> None:
    """Keep what was found.

    Args:
        found: `EXPORT MODE` -> logits or log-probabilities [rows, positions, tokens], or updates of
            weights under `EXPORT MODE MODULE`.
        version: Of the tool.
        note: What one has to know.
    """
    arrays = {name: np.ascontiguousarray(value, np.float32) for name, value in found.items()}
    save_file(arrays, _FOUND, {"version": version, "note": note})
