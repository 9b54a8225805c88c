"""A model that was looked at is as it was, module by module; plain tensors are told from others."""

import pytest
import torch
from torch import nn

from gradroute.system.modules import evaluation_mode, is_plain, modes_restored


def mixed() -> nn.Sequential:
    """A model in training, of which one part was set to evaluation."""
    dropout = nn.Dropout()
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(dropout, nn.Linear(2, 2)))
    dropout.eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_leaves_every_module_as_it_was(training: bool) -> None:
    model = mixed() if training else mixed().eval()
    before = modes(model)
    with evaluation_mode(model):
        assert not any(modes(model))
    assert modes(model) == before


def test_modes_come_back_after_an_error_and_whatever_was_set_meanwhile() -> None:
    model = mixed()
    before = modes(model)
    with pytest.raises(KeyError), modes_restored(model):
        model.train()
        model[0].eval()
        raise KeyError
    assert modes(model) == before


class Sharded(torch.Tensor):
    """Like a weight that another library holds in pieces."""


def test_a_tensor_of_another_class_is_not_plain() -> None:
    assert is_plain(torch.zeros(2)) and is_plain(nn.Parameter(torch.zeros(2)))
    assert not is_plain(torch.zeros(2).as_subclass(Sharded))
    assert not is_plain(nn.Buffer(torch.zeros(2)).as_subclass(Sharded))
