"""State of torch modules: training or evaluation, plain tensors or something else."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

_PLAIN_TENSORS = (nn.Parameter, Tensor)


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, every module is in training or evaluation afterwards as before.

    Each module by itself: `model.train(model.training)` would also switch on the dropout of a part
    that its owner had set to evaluation.
    """
    was_training = [module for module in model.modules() if module.training]
    try:
        yield
    finally:
        model.eval()
        for module in was_training:
            module.training = True


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, with gradients; afterwards every module is as before."""
    with modes_restored(model):
        model.eval()
        yield


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is torch's own kind: a class of its own is a sharded or quantized weight."""
    return type(tensor) in _PLAIN_TENSORS


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody needs the module to be called.

    To gather a sharded weight, to fetch an offloaded one (accelerate sets a `forward` on the
    instance), to record an activation.
    """
    return bool(
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
