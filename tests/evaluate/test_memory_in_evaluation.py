"""An evaluation that runs out of memory goes on with fewer rows, and leaves nothing out."""

from itertools import product

import pytest
import torch
from peft import PeftModel
from tiny_writers import MODES, PROMPTS, ROWS, generate, losses, writer

from gradroute.errors import MachineError
from gradroute.evaluate.inference import in_batches
from gradroute.models.lm_head import plain_head

NOTE = "memory ran out in an evaluation"


def short_of(model: PeftModel, rows: int) -> list[int]:
    """Let no more rows through at a time; how many each forward pass had."""
    seen: list[int] = []

    def refuse(module, args, kwargs):
        tokens = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        seen.append(len(tokens))
        if len(tokens) > rows:
            raise torch.OutOfMemoryError("no memory for so many rows")

    model.get_base_model().register_forward_pre_hook(refuse, with_kwargs=True)
    return seen


@pytest.mark.parametrize("rows", [5, 2])
def test_completions_are_all_there_and_the_same(rows: int) -> None:
    wanted = generate(writer())
    model = writer()
    seen = short_of(model, rows)
    with pytest.warns(UserWarning, match=NOTE):
        found = generate(model)
    assert found == wanted
    assert all(len(found[mode.name]) == len(PROMPTS) for mode in MODES)
    assert min(seen) <= rows < max(seen)


@pytest.mark.parametrize("rows", [5, 2])
def test_losses_are_all_there_and_the_same(rows: int) -> None:
    wanted = losses(writer(dtype=torch.float64))
    model = writer(dtype=torch.float64)
    short_of(model, rows)
    with pytest.warns(UserWarning, match=NOTE):
        found = losses(model)
    for mode in MODES:
        assert found[mode.name].counts == wanted[mode.name].counts
        assert found[mode.name].sums == pytest.approx(wanted[mode.name].sums, rel=1e-6)
        assert len(found[mode.name].sums) == len(ROWS)


def test_once_fewer_rows_fit_it_stays_with_them() -> None:
    model = writer()
    seen = short_of(model, 10)
    with pytest.warns(UserWarning, match=NOTE):
        losses(model)
    assert sum(rows > 10 for rows in seen) <= 2  # 35 rows, perhaps 18, and never more again


def test_without_memory_for_one_row_it_says_what_to_do() -> None:
    model = writer()
    plain_head(model)  # tries the model once, on one row
    short_of(model, 0)
    with (
        pytest.warns(UserWarning, match=NOTE),
        pytest.raises(MachineError, match=r"even one row .*Lower evaluate\.max_new_tokens"),
    ):
        losses(model)


@pytest.mark.filterwarnings(f"ignore:{NOTE}")
@pytest.mark.parametrize("room", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("items", "modes", "rows"), [(0, 2, 4), (1, 5, 3), (7, 3, 12), (9, 1, 4)])
def test_every_item_is_measured_under_every_mode_within_the_room(
    items: int, modes: int, rows: int, room: int
) -> None:
    done: list[tuple[int, int]] = []

    def measure(some: slice, under: slice) -> None:
        cells = list(product(range(some.start, some.stop), range(under.start, under.stop)))
        if len(cells) > room:
            raise MemoryError
        done.extend(cells)

    in_batches(items, modes, rows, measure)
    assert set(done) == set(product(range(items), range(modes)))


def test_with_memory_enough_each_piece_has_as_many_rows_as_were_asked_for() -> None:
    pieces: list[tuple[slice, slice]] = []
    in_batches(7, 3, 11, lambda items, modes: pieces.append((items, modes)))
    assert [(items.start, items.stop) for items, _ in pieces] == [(0, 3), (3, 6), (6, 7)]
    assert all((modes.start, modes.stop) == (0, 3) for _, modes in pieces)
