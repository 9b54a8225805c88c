"""The state in which a model is measured."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
    """Measure a model: evaluation mode and no gradients, restored afterwards module by module.

    `torch.inference_mode` is not used: a tensor that a layer caches under it could never take part
    in training again.

    Yields:
        The device of the model's parameters, where inputs belong.
    """
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        for module in was_training:
            module.training = True
