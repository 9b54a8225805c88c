"""What must hold of a step whatever the model, the layout or the file it came from."""

import random

import pytest
import torch
from small_llama import small_llama

from gradroute.config.run_config import AdapterConfig
from gradroute.data.batches import Batch, collate
from gradroute.models.checkpoint import load_adapters, load_optimizer_tensors, save_checkpoint
from gradroute.models.lm_head import plain_head
from gradroute.routing.adapters import adapter_parameters, attach_adapters, routed
from gradroute.routing.policy import NAMED_POLICIES, RoutingPolicy
from gradroute.train.optimizer import build_optimizer, load_optimizer_state, optimizer_tensors
from gradroute.train.step import accumulate_gradients, loss_weights, train_step
from torture.routings import draw_row, same_bits, tiny_routed

ADAPTERS = {
    "good": AdapterConfig(rank=3, weight_decay=0.1, clip=0.5),
    "bad": AdapterConfig(rank=2, clip=None),
}
LABELS = ["bad", "unlabeled", "good", "bad", "unlabeled", "good"]
TABLES = ("anchored", "absorb", "exclusive", "separate", "none")


def policy_of(table: str) -> RoutingPolicy:
    return RoutingPolicy.parse(table, tuple(ADAPTERS))


def batch(labels: list[str], policy: RoutingPolicy, seed: int = 0) -> Batch:
    draw = random.Random(seed)
    ids = policy.label_ids(labels)
    return collate([draw_row(draw, i, f"row-{seed}-{at}") for at, i in enumerate(ids)], 0)


def gradients(model) -> dict[str, torch.Tensor]:
    return {
        name: torch.cat([p.grad.flatten() for p in own if p.grad is not None])
        for name, own in adapter_parameters(model).items()
    }


def weights(model, name: str) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in adapter_parameters(model)[name]])


def counted(module: torch.nn.Module) -> list[int]:
    """Gets an entry for every time that the module runs."""
    runs: list[int] = []
    module.register_forward_pre_hook(lambda module, args: runs.append(1))
    return runs


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("table", ["absorb", "exclusive", "none"])
@pytest.mark.parametrize("loss_mean", ["token", "example"])
def test_a_mixed_step_updates_an_adapter_as_its_own_rows_alone_would(table, loss_mean):
    """In tables that run every adapter on every row; the mean is over the whole step's rows."""
    policy = policy_of(table)
    mixed = batch(LABELS, policy)
    (factors,) = loss_weights([mixed], loss_mean)
    for name in ADAPTERS:
        own = torch.tensor([NAMED_POLICIES[table][label][name] == "update" for label in LABELS])
        whole, alone = (tiny_routed(ADAPTERS, seed=1) for _ in range(2))
        optimizers = [build_optimizer(one, ADAPTERS, 1e-2) for one in (whole, alone)]
        train_step(whole, optimizers[0], [mixed], policy, loss_mean=loss_mean, rate=1.0)
        part = mixed.rows(own)
        with routed(alone, policy, part.label_ids):
            logits = alone(input_ids=part.input_ids, attention_mask=part.attention_mask).logits
            losses = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), part.targets, reduction="none"
            )
            (losses.sum(1) * factors[own]).sum().backward()
        group = next(g for g in optimizers[1].param_groups if g["adapter"] == name)
        for other in optimizers[1].param_groups:
            if other is not group:
                for parameter in other["params"]:
                    parameter.grad = None
        torch.nn.utils.clip_grad_norm_(group["params"], group["clip"] or float("inf"))
        optimizers[1].step()
        assert relative(weights(whole, name), weights(alone, name)) <= 1e-5
        start = weights(tiny_routed(ADAPTERS, seed=1), name)
        assert relative(weights(whole, name), start) > 1e-3  # it did move


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("table", TABLES)
def test_gradient_checkpointing_changes_no_gradient_of_micro_batches_of_other_labels(
    table, reentrant
):
    policy = policy_of(table)
    batches = [
        batch(labels, policy, seed)
        for seed, labels in enumerate((["bad"] * 3, ["good", "unlabeled"], ["unlabeled"], LABELS))
    ]
    found = []
    for checkpointed in (False, True):
        model = tiny_routed(ADAPTERS, seed=2)
        plain_head(model)  # runs the model, the first time
        runs = counted(model.get_submodule("base_model.model.model.layers.1.mlp"))
        if checkpointed:
            base = model.get_base_model()
            base.gradient_checkpointing_enable({"use_reentrant": reentrant})  # pyright: ignore
            if reentrant:
                base.enable_input_require_grads()  # pyright: ignore
        accumulate_gradients(model, batches, policy, "token")
        assert len(runs) == len(batches) * (1 + checkpointed)  # it did recompute
        found.append(gradients(model))
    for name in ADAPTERS:
        assert relative(found[1][name], found[0][name]) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_model_from_a_checkpoint_has_the_same_logits_and_the_same_next_steps(dtype, tmp_path):
    policy = policy_of("anchored")
    adapters = {"good": AdapterConfig(rank=3, dropout=0.2), "bad": AdapterConfig(rank=2)}

    def fresh(seed: int):
        model = attach_adapters(small_llama(dtype), adapters, layers="all", seed=seed).train()
        return model, build_optimizer(model, adapters, 1e-2)

    def steps(model, optimizer, numbers):
        for number in numbers:
            torch.manual_seed(number)
            parts = [batch(LABELS, policy, 2 * number), batch(["bad"], policy, 2 * number + 1)]
            train_step(model, optimizer, parts, policy, loss_mean="token", rate=0.7)

    def logits(model):
        model.eval()
        with torch.no_grad():
            ids = batch(LABELS, policy, 99).input_ids
            found = model(input_ids=ids).logits
        model.train()
        return found

    model, optimizer = fresh(0)
    steps(model, optimizer, range(5))
    saved = save_checkpoint(
        tmp_path,
        5,
        model,
        optimizer_tensors(model, optimizer),
        config_text="",
        policy=policy.to_plain(),
    )
    again, optimizer_again = fresh(1)
    assert not same_bits(logits(again), logits(model))
    load_adapters(saved, again)
    load_optimizer_state(again, optimizer_again, load_optimizer_tensors(saved))
    assert same_bits(logits(again), logits(model))
    for one, other in ((model, optimizer), (again, optimizer_again)):
        steps(one, other, range(5, 8))
    assert same_bits(logits(again), logits(model))
    for name in adapters:
        assert same_bits(weights(again, name), weights(model, name))
    moments = optimizer_tensors(model, optimizer)
    moments_again = optimizer_tensors(again, optimizer_again)
    assert moments.keys() == moments_again.keys() and moments
    assert all(same_bits(moments[key], moments_again[key]) for key in moments)
