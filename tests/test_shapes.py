"""Shapes in signatures are checked in the test run, see `conftest.py`."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from shape_checks import checked
from shape_hook import with_checks
from tiny_writers import ROWS
from torch import Tensor

from gradroute.data.batches import collate
from gradroute.evaluate.sampling import draw

PACKAGE = Path(__file__).parent.parent / "gradroute"


def test_a_tensor_of_another_shape_than_the_signature_says_is_refused():
    with pytest.raises(TypeCheckError):
        draw(torch.zeros(2, 5), torch.zeros(2, 4), 1.0)


def test_it_is_refused_after_calls_that_were_right_too():
    for _ in range(2):
        draw(torch.zeros(2, 5), torch.zeros(2, 5), 1.0)
    for wrong in (torch.zeros(2, 4), torch.zeros(2, 5).long(), torch.zeros(5)):
        with pytest.raises(TypeCheckError):
            draw(torch.zeros(2, 5), wrong, 1.0)


def test_what_comes_out_is_checked_at_every_combination_with_what_went_in():
    out = torch.zeros(3)

    @checked
    def given(x: Float[Tensor, " n"], more: list[Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
        return out

    assert given(torch.zeros(3), [torch.zeros(3)]) is out
    assert given(torch.zeros(3), [torch.zeros(3)]) is out
    with pytest.raises(TypeCheckError):
        given(torch.zeros(3), [torch.zeros(4)])
    out = torch.zeros(4)
    for _ in range(2):
        with pytest.raises(TypeCheckError):
            given(torch.zeros(3), [torch.zeros(3)])
    assert given(torch.zeros(4), [torch.zeros(4)]) is out


def test_fields_of_a_dataclass_are_checked():
    batch = collate(ROWS[:2], pad_id=0)
    with pytest.raises(TypeCheckError):
        replace(batch, attention_mask=batch.attention_mask[:, 1:])


def test_whatever_names_a_shape_is_checked_and_nothing_else():
    written = '''
from jaxtyping import Float, Int as Whole

_Named = dict[str, Float[Tensor, "n"]]

def plain(x: Floats, shape: "an Into") -> int:
    def inner(x: Whole[Tensor, ""]): ...

@contextmanager
def by_name(*, x: _Named): ...

class Kept:
    field: Whole[Tensor, "n"]

    @property
    def out(self) -> "list[Float[Tensor, '']]": ...

class Plain:
    """Of Float."""
    field: int = Float
'''
    tree = with_checks(ast.parse(written))
    found = {
        node.name: [ast.unparse(one) for one in node.decorator_list]
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    check = "__import__('shape_checks').checked"
    assert found == {
        "plain": [],
        "inner": [check],
        "by_name": ["contextmanager", check],
        "Kept": [check],
        "out": ["property", check],
        "Plain": [],
    }


def test_every_module_with_shapes_is_one_of_those_that_are_checked():
    """A module that imports `jaxtyping` in another way is not found by `conftest.py`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "from jaxtyping import" in text or "jaxtyping" not in text, path
