"""Changes by other code to routed adapters: swapped, loaded, replaced, deleted, merged.

A scope looks at this when it begins, by identity and by name alone, so that it costs a step nothing
that can be measured. In-place changes of the weights are a training loop's own and legal. Two calls
of PEFT change weights in place too, and put another adapter under the same name: they are noted as
they are called, since nothing on the model tells them from an optimizer's step afterwards.
"""

from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

from peft import PeftModel
from peft.utils import hotswap
from torch import nn

from gradroute.errors import ConfigError
from gradroute.routing.fused_kernels import check_not_fused
from gradroute.routing.layers import (
    RoutedLayers,
    lora_layers,
    refuse_merged,
    routed_parts,
)
from gradroute.system.modules import is_hooked

_AGAIN = "Call route_adapters(model) to go on with what is there now, or load the model again."


def watch_peft() -> None:
    """From now on, note where PEFT puts another adapter under the name of a routed one."""
    for place, name, noted in (
        (hotswap, "hotswap_adapter_from_state_dict", _note_swap),
        (PeftModel, "load_adapter", _note_load),
    ):
        call = getattr(place, name)
        if not getattr(call, "noted_by_gradroute", False):
            setattr(place, name, noted(call))


def check_untouched(model_layers: RoutedLayers) -> None:
    """See that the adapters are those that were routed, and that their layers compute them.

    Raises:
        ConfigError: One was merged, deleted, disabled, hot-swapped, loaded anew or got other
            parameters; the message names it.
    """
    for layer in model_layers.layers.values():
        refuse_merged(layer)
        if layer.disable_adapters:
            raise ConfigError(
                f"PEFT has disabled the adapters {', '.join(model_layers.state.adapters)}, so that "
                "none "
                "would run whatever its route; leave `disable_adapter()`, or call "
                "model.base_model.enable_adapter_layers()."
            )
    _check_all_there(model_layers)
    check_not_fused(model_layers.state.parents)
    for part in routed_parts(model_layers.layers):
        if part.changed_by:
            raise ConfigError(
                f"the adapter {part.adapter!r} is another one since it was routed: "
                f"{part.changed_by} put other weights under its name. {_AGAIN}"
            )
        weight = part.weight
        # Sharded and offloaded weights come and go; a library that does so hooks the module, or
        # has a class of its own for them.
        if (
            weight is not part.routed_weight[0]
            and type(weight) is nn.Parameter
            and not weight.is_meta
            and not is_hooked(part)
        ):
            raise ConfigError(
                f"the adapter {part.adapter!r} has other parameters than when it was routed; "
                f"change them in place, as load_state_dict does without assign=True. {_AGAIN}"
            )


def _check_all_there(model_layers: RoutedLayers) -> None:
    now = Counter(part.adapter for part in routed_parts(model_layers.layers))
    for name, count in model_layers.state.parts.items():
        if now[name] < count:
            where = "the model" if not now[name] else "some of the layers that had it"
            raise ConfigError(
                f"the adapter {name!r} was deleted from {where} after it was routed. {_AGAIN}"
            )


def _note_swap(call: Callable[..., Any]) -> Callable[..., Any]:
    """PEFT's hot-swap, noted; its arguments are its own and handed on as they are."""

    @wraps(call)
    def hotswap_adapter_from_state_dict(
        model: nn.Module, state_dict: Any, adapter_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        try:
            return call(model, state_dict, adapter_name, *args, **kwargs)
        finally:
            # It sets every adapter to 0 whose name has this one in it, too.
            _note(model, "hotswap_adapter", lambda name: adapter_name in name)

    setattr(hotswap_adapter_from_state_dict, "noted_by_gradroute", True)  # noqa: B010
    return hotswap_adapter_from_state_dict


def _note_load(call: Callable[..., Any]) -> Callable[..., Any]:
    """`PeftModel.load_adapter`, noted where the name is there: it keeps the alpha that it had."""

    @wraps(call)
    def load_adapter(
        self: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        try:
            return call(self, model_id, adapter_name, *args, **kwargs)
        finally:
            _note(self, "load_adapter", lambda name: name == adapter_name)

    setattr(load_adapter, "noted_by_gradroute", True)  # noqa: B010
    return load_adapter


def _note(model: nn.Module, by: str, concerned: Callable[[str], bool]) -> None:
    for part in routed_parts(lora_layers(model)):
        if concerned(part.adapter):
            part.changed_by = by
