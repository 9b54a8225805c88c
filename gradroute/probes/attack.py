"""The relearning attack: plain fine-tuning until a removed behavior is back.

What a run ships is merged into the base, and a fresh LoRA adapter, or every weight, is trained on a
few examples of the behavior: what anybody who has the weights can do. A model that never saw the
behavior says how long that takes where nothing was hidden; one that takes fewer steps had the
behavior suppressed rather than absent.

The adapter is a fresh one, of the run's total rank and with the same initial weights and the same
data order for every run, so that all are attacked with equal capacity from an equal start. Training
the run's own adapters on would not be: of two adapters of rank 32 one is left after ablation, while
a filtered run still has its single one of rank 64, and each would start from where its own training
had left it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from transformers import PreTrainedModel

from gradroute.config.run_config import AdapterConfig
from gradroute.data.batches import TokenizedExample
from gradroute.errors import ConfigError
from gradroute.evaluate.losses import ExampleLosses
from gradroute.probes.full_attack import full_steps, weights_restored
from gradroute.routing.adapters import attach_adapters
from gradroute.routing.policy import AblationMode, RoutingPolicy, shipped_mode
from gradroute.routing.shared_weights import unshare
from gradroute.system.statistics import wilson
from gradroute.train.optimizer import build_optimizer
from gradroute.train.short_tune import tune_steps
from gradroute.train.step_report import StepReport

ATTACKER = "attacker"
"""Name of the fresh adapter."""
WHOLE = AblationMode.parse("full", (ATTACKER,))
"""The mode in which the attacked model is measured: the fresh adapter on."""


@dataclass(frozen=True)
class Attack:
    """What a model is attacked with, but for the examples.

    Attributes:
        rank: Of the fresh adapter, whose scale is 2 (alpha is twice the rank).
        targets: Modules that get it, see `find_targets`.
        layers: Transformer layers that get it.
        learning_rate: Of AdamW; constant, without warm-up, weight decay or clipping.
        batch_size: Examples in one forward pass.
        accumulation: Forward passes per step.
        loss_mean: What a step averages over, "token" or "example".
        max_steps: Steps after which the attack is given up.
        every: Steps between measurements; the behavior's return is seen to this precision.
        threshold: Behavior rate at which the behavior counts as back.
        seed: Of the adapter's initial weights and of the data order.
        full: Train all weights of the model and leave the fresh adapter idle.
    """

    rank: int
    targets: str | Sequence[str]
    layers: str | Sequence[int]
    learning_rate: float
    batch_size: int
    accumulation: int
    loss_mean: str
    max_steps: int
    every: int
    threshold: float
    seed: int
    full: bool = False


def mode_to_ship(policy: RoutingPolicy, labels: Sequence[str] = ("bad",)) -> AblationMode:
    """The mode in which a run is shipped: without `bad` where it was routed, else all of it.

    Args:
        policy: The run's routing table.
        labels: Those of its behaviors; the adapters of these names are left out.

    Raises:
        ConfigError: The table routes, but there is no adapter `bad` to leave out.
    """
    if not policy.routes_anything:
        return AblationMode.parse("full", policy.adapters)
    mode = shipped_mode(policy.adapters, labels)
    if mode is None:
        names = " or ".join(labels)
        raise ConfigError(
            f"the routing table routes between the adapters {', '.join(policy.adapters)}, none of "
            f"which is called {names}, so it is unknown which one is left out when the model is "
            f"shipped. Name the one to leave out {names}."
        )
    return mode


def merge_active_adapters(model: PeftModel, mode: AblationMode) -> PreTrainedModel:
    """The base with the adapters that a mode keeps merged into its weights, in float32.

    In 16 bits a merge would round small updates away. Modules that share a weight get one of their
    own first (`unshare`), so that each takes its own update and no other. The model is used up.

    Args:
        model: A routed model on its device; of its adapters those at scale 1 are merged and those
            at scale 0 dropped.
        mode: A mode without other scales.

    Raises:
        ConfigError: The mode has a scale other than 0 and 1, or the base is held in few bits.
    """
    if not set(mode.scales.values()) <= {0.0, 1.0}:
        raise ConfigError(f"mode {mode.name!r} cannot be merged; its scales must be 0 or 1.")
    tuner = model.base_model
    assert isinstance(tuner, BaseTuner)
    if getattr(tuner.model.config, "quantization_config", None) is not None:
        raise ConfigError(
            "a quantized base cannot be merged with the kept adapters: its weights would be "
            "rounded again. Train with quantize=none to measure relearning."
        )
    torch.nn.Module.to(model, torch.float32)
    unshare(model)
    merged = (
        tuner.merge_and_unload(adapter_names=list(mode.active)) if mode.active else tuner.unload()
    )
    assert isinstance(merged, PreTrainedModel)
    return merged.requires_grad_(False).eval()


def relearn(
    base: PreTrainedModel,
    rows: Sequence[TokenizedExample],
    attack: Attack,
    *,
    pad_id: int,
    measure: Callable[[PeftModel], dict[str, Any]],
    begin: Callable[[PeftModel], None] | None = None,
) -> dict[str, Any]:
    """Train a fresh adapter, or all weights, on examples of the behavior until it is back.

    Args:
        base: What is attacked, see `merge_active_adapters`; it is afterwards as it was before.
        rows: The examples, with label id 0.
        attack: How.
        pad_id: Token that fills short rows.
        measure: Gives the numbers of a point, `rate` among them, under the mode `WHOLE`.
        begin: Is called with a model whose base stays as it is, before its first point.

    Returns:
        The curve: `learning_rate`, `max_steps`, its `points` (step 0 is the model before the
        attack), and `steps_to_threshold`, the first measured step with a rate of the threshold or
        more; None where there is none.

    Raises:
        NumericError: A loss or gradient is not finite.
    """
    points: list[dict[str, Any]] = []
    reached: int | None = None
    with _tuned(base, rows, attack, pad_id) as (model, tune):
        if begin is not None and not attack.full:
            begin(model)
        for step in range(attack.max_steps + 1):
            if step:
                next(tune)
            if step % attack.every == 0 or step == attack.max_steps:
                points.append({"step": step, **measure(model)})
                if points[-1]["rate"] >= attack.threshold:
                    reached = step
                    break
    return {
        "learning_rate": attack.learning_rate,
        "steps_to_threshold": reached,
        "max_steps": attack.max_steps,
        "points": points,
    }


def curve_point(samples: Sequence[Mapping[str, Any]], losses: ExampleLosses) -> dict[str, Any]:
    """The numbers of one point of a curve.

    Args:
        samples: Lines of `sample_lines`; one too short to judge counts as not showing the
            behavior.
        losses: Of held-out examples without the behavior.

    Returns:
        `shown` of `n`, `rate` with its Wilson interval `lower` to `upper`, and `normal_loss` in
        nats per target token.
    """
    n = len(samples)
    shown = sum(sample["shows"] is True for sample in samples)
    lower, upper = wilson(shown, n)
    return {
        "shown": shown,
        "n": n,
        "rate": shown / n,
        "lower": lower,
        "upper": upper,
        "normal_loss": sum(losses.sums) / sum(losses.counts),
    }


@contextmanager
def _tuned(
    base: PreTrainedModel, rows: Sequence[TokenizedExample], attack: Attack, pad_id: int
) -> Iterator[tuple[PeftModel, Iterator[object]]]:
    """The attacked model and its steps; the base is afterwards as it was before."""
    if not attack.full:
        with _attacker(base, attack) as model:
            yield model, _tuning(model, rows, attack, pad_id)
        return
    with weights_restored(base) as weights, _attacker(base, attack) as model:
        yield (
            model,
            full_steps(
                model,
                weights,
                rows,
                learning_rate=attack.learning_rate,
                steps=attack.max_steps,
                batch_size=attack.batch_size,
                accumulation=attack.accumulation,
                loss_mean=attack.loss_mean,
                seed=attack.seed,
                pad_id=pad_id,
            ),
        )


@contextmanager
def _attacker(base: PreTrainedModel, attack: Attack) -> Iterator[PeftModel]:
    """The base with the fresh adapter, which is taken off again."""
    model = attach_adapters(
        base,
        {ATTACKER: AdapterConfig(rank=attack.rank)},
        targets=attack.targets,
        layers=attack.layers,
        seed=attack.seed,
    )
    try:
        yield model
    finally:
        assert isinstance(model.base_model, BaseTuner)
        model.base_model.unload()
        base.eval()


def _tuning(
    model: PeftModel, rows: Sequence[TokenizedExample], attack: Attack, pad_id: int
) -> Iterator[StepReport]:
    plain = {ATTACKER: AdapterConfig(rank=attack.rank, weight_decay=0.0, clip=None)}
    return tune_steps(
        model,
        build_optimizer(model, plain, attack.learning_rate),
        rows,
        RoutingPolicy.parse({"all": {ATTACKER: "update"}}, (ATTACKER,)),
        steps=attack.max_steps,
        batch_size=attack.batch_size,
        accumulation=attack.accumulation,
        loss_mean=attack.loss_mean,
        rate=lambda step: 1.0,
        seed=attack.seed,
        pad_id=pad_id,
    )
