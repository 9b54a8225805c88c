"""A trial of a model with adapters on a few tokens, before training.

What a family of models does with its layers, its cache and its padding is known to nobody in
advance. So whoever trains or validates asks once, before the first step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.errors import ConfigError, GradrouteError
from gradroute.evaluate.batch_check import TROUBLE, why_alone
from gradroute.evaluate.generation import Prompt, generate_modes
from gradroute.evaluate.inference import inference
from gradroute.models.sizes import ordinary_tokens
from gradroute.routing.adapters import ablated
from gradroute.routing.layers import adapter_weights, routed_layers
from gradroute.routing.policy import AblationMode
from gradroute.routing.targets import PLACES
from gradroute.system.memory import is_out_of_memory
from gradroute.system.modules import modes_restored
from gradroute.system.terminal import first_line

_ROWS, _LENGTH, _PADDED = 2, 6, 2
_NAMED = 6  # kinds of modules that a sentence names
_PREFIX = "base_model.model."
# Largest difference of logits that is rounding, over the largest logit. Both rows are in one batch.
_CLOSE = {torch.float64: 1e-8, torch.float32: 1e-4}
_CLOSE_OTHERWISE = 0.05


@dataclass(frozen=True)
class Probe:
    """What was seen.

    Attributes:
        modules: How many modules have adapters.
        idle: Names of those whose adapters never act: the model does not run them, or reads their
            weights rather than run them.
        alone: Why rows are written one at a time in an evaluation; nothing where they share a
            batch. It is said as a warning when it is first seen.
    """

    modules: int
    idle: tuple[str, ...]
    alone: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth a line: the adapters that never act."""
        if not self.idle:
            return ()
        return (
            f"the adapters on {len(self.idle)} of {self.modules} modules never act "
            f"({_kinds(self.idle)}): the model does not run these modules, or reads their weights "
            "directly, so that their adapters stay at zero and change nothing.",
        )


def probe(
    model: PeftModel,
    tokenizer: Tokenizer | None = None,
    targets: str | Sequence[str] = PLACES,
) -> Probe:
    """Try what training and evaluation will need of a model.

    One forward and backward pass on two rows, one of them padded as in training, shows which
    adapters act; two rows that differ in their last token show whether the model is causal; a few
    tokens after two rows show whether they may be written in a batch; with a tokenizer, two prompts
    are completed under two modes. Weights, gradients, training mode and random state stay as they
    are.

    Args:
        model: A routed model on its device.
        tokenizer: Its tokenizer; None leaves out the completions.
        targets: What its adapters were asked to be on, see `find_targets`.

    Raises:
        ConfigError: The model cannot be trained or cannot write text, is not causal, or a target
            was named whose adapter never acts; the message says which.
    """
    inner = model.get_base_model()
    assert isinstance(inner, PreTrainedModel)
    with ablated(model, "base"):
        _check_causal(inner)
    idle = idle_modules(model)
    _check_named(idle, targets)
    modes = [AblationMode.parse(name, routed_layers(model).adapters) for name in ("full", "base")]
    try:
        with ablated(model, "base"):
            alone = why_alone(inner)
        if tokenizer is not None:
            # Long enough for any beginning, short enough for any model.
            prompts = [Prompt("probe-0", "a b"), Prompt("probe-1", "a")]
            generate_modes(
                model,
                tokenizer,
                prompts,
                modes,
                max_new_tokens=1,
                temperature=0.0,
                top_p=1.0,
                seed=0,
                rows_per_batch=len(prompts) * len(modes),
            )
    except TROUBLE as error:
        if isinstance(error, GradrouteError) or is_out_of_memory(error):
            raise
        raise ConfigError(
            f"the model {type(inner).__name__} can be trained but cannot be evaluated here "
            f"({first_line(error)}). Take another base model."
        ) from error
    return Probe(len(routed_layers(model).layers), idle, alone)


def idle_modules(model: PeftModel) -> tuple[str, ...]:
    """The adapted modules whose adapters never act, in the model's order.

    B of such an adapter has no gradient, whatever the logits are wanted to be, and stays at zero
    however long it is trained. It is looked at in training mode: some models run other code there.

    Args:
        model: A routed model on its device.

    Raises:
        ConfigError: The model cannot be run with its adapters.
    """
    inner = model.get_base_model()
    assert isinstance(inner, PreTrainedModel)
    tokens = ordinary_tokens(inner, _ROWS * _LENGTH)
    ids = torch.tensor(tokens, device=model.device).reshape(_ROWS, _LENGTH)
    layers = routed_layers(model).layers
    ups = [adapter_weights(layer, next(iter(layer.lora_A)))[1] for layer in layers.values()]
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with (
            modes_restored(model),
            torch.random.fork_rng(devices=devices),
            ablated(model.train(), "full"),
        ):
            mask = torch.ones_like(ids)
            mask[-1, -_PADDED:] = 0  # rows of unequal length, as training has them
            inputs = {"input_ids": ids, "attention_mask": mask}
            gradients = _gradients(model(**inputs, use_cache=False).logits, ups)
    except TROUBLE as error:
        if isinstance(error, GradrouteError) or is_out_of_memory(error):
            raise
        raise ConfigError(
            f"the model {type(inner).__name__} cannot be run with these adapters "
            f"({first_line(error)}). Set other targets, or take another base model."
        ) from error
    return tuple(
        name.removeprefix(_PREFIX)
        for name, gradient in zip(layers, gradients, strict=True)
        if gradient is None or not bool(gradient.any())
    )


def _check_causal(model: PreTrainedModel) -> None:
    """See that no position reads a later one.

    Encoders such as BERT load as causal language models, and then see what they are to predict.
    """
    tokens = ordinary_tokens(model, _LENGTH + 1)
    ids = torch.tensor([tokens[:-1], [*tokens[:-2], tokens[-1]]], device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    try:
        with inference(model):
            logits = model(**inputs, use_cache=False).logits
    except TROUBLE as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"the model {type(model).__name__} cannot be run, with or without adapters "
            f"({first_line(error)}). See whether its config.json fits its weights, or take another "
            "base model."
        ) from error
    one, other = logits[:, :-1].double()
    apart = (one - other).abs().amax(1) / logits.abs().max()
    # In few bits one token may take another expert because of rounding.
    largest = float(apart.max() if model.dtype in _CLOSE else apart.median())
    if largest > _CLOSE.get(model.dtype, _CLOSE_OTHERWISE):
        raise ConfigError(
            f"the model {type(model).__name__} is not causal: its logits before a token depend on "
            f"that token (by {largest:.2g} of the largest), so that it reads in training what it "
            "is to predict. Take a model that was trained to write text; of an encoder that was "
            "trained as a decoder, set is_decoder to true in its config.json."
        )


def _gradients(logits: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Of any function of all logits that is not blind for a common shift of them."""
    some = torch.linspace(-1.0, 1.0, logits[0].numel(), device=logits.device)
    total = (logits.float() * some.reshape(logits[0].shape)).sum()
    learning = [weight for weight in weights if weight.requires_grad]
    found = iter(torch.autograd.grad(total, learning, allow_unused=True))
    return tuple(next(found) if w.requires_grad else torch.ones(1) for w in weights)


def _check_named(idle: Sequence[str], targets: str | Sequence[str]) -> None:
    wanted = [targets] if isinstance(targets, str) else targets
    for target in wanted:
        own = [name for name in idle if name == target or name.endswith(f".{target}")]
        if target not in PLACES and own:
            raise ConfigError(
                f"targets: an adapter on {target} never acts in {len(own)} modules "
                f"({_kinds(own)}), which the model does not run, or whose weights it reads "
                "directly; leave it out of the targets, or leave these layers out of layers."
            )


def _kinds(names: Sequence[str]) -> str:
    """Names of modules for a sentence, the first few."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
