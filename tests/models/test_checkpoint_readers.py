"""Reading checkpoints while their writer goes on."""

import shutil

import pytest
import torch
from small_llama import small_llama

from gradroute.config.run_config import RunConfig
from gradroute.errors import MachineError
from gradroute.models import checkpoint as checkpoints
from gradroute.models.checkpoint import latest_checkpoint, save_checkpoint
from gradroute.routing.adapters import attach_adapters


@pytest.fixture
def save(tmp_path):
    model = attach_adapters(small_llama(), RunConfig().adapters, layers="all")

    def at(step):
        moments = {"moments": torch.zeros(3)}
        return save_checkpoint(tmp_path, step, model, moments, config_text="", policy={})

    return at


def test_a_checkpoint_that_its_writer_removes_while_it_is_read_is_no_damaged_one(
    tmp_path, save, monkeypatch
):
    """Warnings are errors here: it must not be passed over, but looked for again."""
    save(3)
    look, looked = checkpoints._damage, []

    def slow_look(candidate):
        looked.append(candidate.step)
        if len(looked) == 1:
            monkeypatch.setattr(checkpoints, "_damage", look)
            save(6)
            save(9)
            monkeypatch.setattr(checkpoints, "_damage", slow_look)
        return look(candidate)

    monkeypatch.setattr(checkpoints, "_damage", slow_look)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, looked) == (9, [3, 9])


def test_a_link_to_nothing_is_a_damaged_checkpoint(tmp_path, save):
    shutil.rmtree(save(3).path)
    (tmp_path / "step-000003").symlink_to(tmp_path / "nowhere")
    with pytest.warns(UserWarning, match="is skipped"), pytest.raises(MachineError):
        latest_checkpoint(tmp_path)
