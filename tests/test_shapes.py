"""Shapes in signatures are checked in the test run, see `conftest.py`."""

from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

from gradroute.evaluate.sampling import draw

PACKAGE = Path(__file__).parent.parent / "gradroute"


def test_a_tensor_of_another_shape_than_the_signature_says_is_refused():
    with pytest.raises(TypeCheckError):
        draw(torch.zeros(2, 5), torch.zeros(2, 4), 1.0)


def test_every_module_with_shapes_is_one_of_those_that_are_checked():
    """A module that imports `jaxtyping` in another way is not found by `conftest.py`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "from jaxtyping import" in text or "jaxtyping" not in text, path
