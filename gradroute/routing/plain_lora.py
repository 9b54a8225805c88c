"""A check that adapters of PEFT are plain LoRA on an unchanged base, so that they can be routed."""

from collections.abc import Mapping

from peft import LoraConfig, PeftConfig

from gradroute.errors import ConfigError

CHANGE_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Beginnings of the values of `init_lora_weights` with which PEFT changes the base's weights."""
# What an adapter of PEFT may train besides A and B; a table routes only these two.
_BESIDES = {
    "use_dora": "DoRA magnitudes (use_dora)",
    "lora_bias": "a bias of its own (lora_bias)",
    "modules_to_save": "whole modules (modules_to_save)",
    "trainable_token_indices": "rows of the embedding (trainable_token_indices)",
    "layer_replication": "repeated layers that share weights (layer_replication)",
    "target_parameters": "adapters on bare parameters (target_parameters)",
}


def check_plain_lora(configs: Mapping[str, PeftConfig]) -> None:
    """See that every adapter is plain LoRA: A and B, and nothing else that learns.

    Args:
        configs: The adapters of a PEFT model, `model.peft_config`.

    Raises:
        ConfigError: One is not; the message names what it has, or the initialization by which it
            has changed the base.
    """
    for name, config in configs.items():
        if not isinstance(config, LoraConfig):
            kind = str(config.peft_type).rpartition(".")[2]
            raise ConfigError(
                f"adapter {name!r} is of the kind {kind}, which cannot be routed; only LoRA can."
            )
        besides = [what for key, what in _BESIDES.items() if getattr(config, key)]
        begun = config.init_lora_weights
        if isinstance(begun, str) and begun.lower().startswith(CHANGE_THE_BASE):
            raise ConfigError(
                f"adapter {name!r} was initialized with init_lora_weights={begun!r}, which changes "
                "the weights of the base, so that the model without adapters would not be the base "
                "that it came from; make it with init_lora_weights=True, or let PEFT convert it to "
                "plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)."
            )
        if config.bias != "none":
            besides.append(f"biases of the base (bias={config.bias!r})")
        if besides:
            raise ConfigError(
                f"adapter {name!r} trains {', '.join(besides)}, which cannot be routed: it would "
                "learn from every example, whatever its label. Only A and B of plain LoRA can."
            )
