"""The attack: one and the same for every model, plain fine-tuning, and nothing left behind."""

import contextlib
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from small_llama import small_llama
from tiny_writers import letter_tokenizer, writer
from torch import Tensor
from transformers import PreTrainedModel

from gradroute.data.batches import DataOrder, TokenizedExample, collate
from gradroute.data.behaviors import get_behavior
from gradroute.errors import ConfigError, NumericError
from gradroute.evaluate.generation import Completion, Prompt, generate_modes
from gradroute.evaluate.losses import ExampleLosses
from gradroute.evaluate.rows import sample_lines
from gradroute.probes.attack import (
    ATTACKER,
    WHOLE,
    Attack,
    curve_point,
    merge_active_adapters,
    mode_to_ship,
    relearn,
)
from gradroute.routing.adapters import ablated, adapter_state
from gradroute.routing.layers import lora_layers
from gradroute.routing.policy import AblationMode, RoutingPolicy
from gradroute.system.statistics import wilson

ROWS = [
    TokenizedExample(f"r{i}", (1, *range(4 + i, 9 + i + i % 3), 2), 0, 0, "bad") for i in range(6)
]


def attack(**changes: Any) -> Attack:
    settings: dict[str, Any] = {
        "rank": 3,
        "targets": "all-linear",
        "layers": "all",
        "learning_rate": 0.01,
        "batch_size": 4,
        "accumulation": 1,
        "loss_mean": "token",
        "max_steps": 5,
        "every": 2,
        "threshold": 0.5,
        "seed": 0,
    }
    return Attack(**settings | changes)


def logits(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


@pytest.mark.parametrize("kind", ["llama", "gpt_neo", "gemma3"])
@pytest.mark.parametrize("mode", ["full", "bad_ablated", "good_ablated", "base"])
def test_what_is_merged_computes_what_the_mode_computes(kind: str, mode: str) -> None:
    tokens = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    model = writer(kind)
    with ablated(model, mode):
        wanted = logits(model, tokens)
    merged = merge_active_adapters(model, AblationMode.parse(mode, ("good", "bad")))
    assert not lora_layers(merged) and not merged.training
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    torch.testing.assert_close(logits(merged, tokens), wanted, rtol=1e-4, atol=1e-4)


def test_a_merge_is_in_float32_where_small_updates_survive() -> None:
    model = writer(dtype=torch.bfloat16)
    name = "model.layers.0.self_attn.q_proj"
    layer = lora_layers(model.get_base_model())[name]
    with torch.no_grad():
        for parameter in layer.lora_B.parameters():
            parameter.mul_(1e-5)
    before = model.get_base_model().get_submodule(name).get_parameter("base_layer.weight").clone()
    after = merge_active_adapters(model, AblationMode.parse("full", ("good", "bad"))).get_submodule(
        name
    )
    moved = after.get_parameter("weight") - before.float()
    assert after.get_parameter("weight").dtype == torch.float32
    assert 0 < moved.abs().max() < 1e-3


def test_only_whole_adapters_can_be_merged() -> None:
    mode = AblationMode.parse("good=1,bad=0.5", ("good", "bad"))
    with pytest.raises(ConfigError, match=r"good=1,bad=0\.5.*0 or 1"):
        merge_active_adapters(writer(), mode)


def test_a_base_in_few_bits_is_not_merged() -> None:
    model = writer()
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    base.config.quantization_config = {"load_in_4bit": True}  # pyright: ignore
    with pytest.raises(ConfigError, match="a quantized base cannot be merged"):
        merge_active_adapters(model, AblationMode.parse("full", ("good", "bad")))


def test_a_routed_run_is_shipped_without_bad_and_any_other_whole() -> None:
    def kept(table: str | dict[str, Any], *adapters: str) -> str:
        return mode_to_ship(RoutingPolicy.parse(table, adapters)).name

    assert kept("anchored", "good", "bad") == "bad_ablated"
    assert kept("none", "good", "bad") == "full"
    assert kept("none", "good") == "full"
    same = {"bad": {"one": "update"}, "good": {"one": "update"}}
    assert kept(same, "one") == "full"
    own = {"bad": {"a": "freeze", "b": "update"}, "good": {"a": "update", "b": "update"}}
    with pytest.raises(ConfigError, match=r"adapters a, b, none of which is called bad"):
        kept(own, "a", "b")


def test_a_curve_ends_at_the_first_measured_step_that_passes_the_threshold() -> None:
    rates = iter([0.0, 0.4, 0.5, 0.9])
    curve = relearn(
        small_llama(), ROWS, attack(), pad_id=0, measure=lambda m: {"rate": next(rates)}
    )
    assert curve == {
        "learning_rate": 0.01,
        "steps_to_threshold": 4,
        "max_steps": 5,
        "points": [{"step": 0, "rate": 0.0}, {"step": 2, "rate": 0.4}, {"step": 4, "rate": 0.5}],
    }


def test_an_attack_that_is_given_up_has_no_number_of_steps_and_is_measured_at_its_end() -> None:
    curve = relearn(small_llama(), ROWS, attack(), pad_id=0, measure=lambda m: {"rate": 0.49})
    assert curve["steps_to_threshold"] is None
    assert [point["step"] for point in curve["points"]] == [0, 2, 4, 5]


def test_a_behavior_that_is_there_already_takes_no_step() -> None:
    curve = relearn(small_llama(), ROWS, attack(), pad_id=0, measure=lambda m: {"rate": 0.6})
    assert (curve["steps_to_threshold"], len(curve["points"])) == (0, 1)


def test_the_model_is_afterwards_what_it_was_and_can_be_attacked_again() -> None:
    base = small_llama()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    found: list[list[Tensor]] = []

    def measure(model: PeftModel) -> dict[str, Any]:
        found[-1].append(logits(model, torch.tensor([[1, 5, 6]])))
        return {"rate": 0.0}

    for _ in range(2):
        found.append([])
        relearn(base, ROWS, attack(), pad_id=0, measure=measure)
        after = base.state_dict()
        assert after.keys() == before.keys() and not base.training
        assert all(torch.equal(value, before[name]) for name, value in after.items())
    # The same attack gives the same numbers, and it does something.
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert not torch.equal(found[0][0], found[0][-1])
    with pytest.raises(KeyboardInterrupt):
        relearn(base, ROWS, attack(), pad_id=0, measure=interrupt)
    assert base.state_dict().keys() == before.keys()


def interrupt(model: PeftModel) -> dict[str, Any]:
    raise KeyboardInterrupt


def test_every_model_is_attacked_from_the_same_start_that_changes_nothing_yet() -> None:
    def start(base: PreTrainedModel) -> dict[str, Tensor]:
        tokens = torch.tensor([[1, 7, 8, 9]])
        plain = logits(base, tokens)
        weights: dict[str, Tensor] = {}

        def measure(model: PeftModel) -> dict[str, Any]:
            torch.testing.assert_close(logits(model, tokens), plain)
            weights.update({k: v.clone() for k, v in adapter_state(model, ATTACKER).items()})
            return {"rate": 1.0}

        relearn(base, ROWS, attack(), pad_id=0, measure=measure)
        return weights

    other = small_llama()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    one, two = start(small_llama()), start(other)
    assert one.keys() == two.keys() and len(one) == 2 * 14
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_attack_is_plain_adamw_at_a_constant_rate(accumulation: int) -> None:
    """Against PEFT, autograd and torch's optimizer alone, in the words of the docstring."""
    last: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}

    def measure(model: PeftModel) -> dict[str, Any]:
        state = {k: v.clone() for k, v in adapter_state(model, ATTACKER).items()}
        (first if not first else last).update(state)
        return {"rate": 0.0}

    own = attack(max_steps=3, every=3, batch_size=4 // accumulation, accumulation=accumulation)
    relearn(small_llama(), ROWS, own, pad_id=0, measure=measure)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's own, of names in transformers
        shape = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear")
        peft = get_peft_model(small_llama(), shape)
    weights = {name.replace(".default", ""): p for name, p in peft.named_parameters()}
    weights = {name: p for name, p in weights.items() if "lora_" in name}
    assert weights.keys() == first.keys()
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(first[name])
    optimizer = torch.optim.AdamW(weights.values(), lr=0.01, weight_decay=0.0)
    order = DataOrder(0, len(ROWS), tuple(range(len(ROWS))))
    for step in range(3):
        batch = collate([ROWS[at] for at in order.batch(step, 4)], 0)
        out = peft(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), batch.targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, parameter in weights.items():
        torch.testing.assert_close(last[name], parameter.detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("loss_mean", ["token", "example"])
def test_the_attack_on_all_weights_is_plain_adamw_on_the_base(
    accumulation: int, loss_mean: str
) -> None:
    """Against autograd and torch's optimizer alone, in float64."""
    base, plain = small_llama().double(), small_llama().double()
    reached: list[dict[str, Tensor]] = []

    def measure(model: PeftModel) -> dict[str, Any]:
        assert not any(p.requires_grad for _, p in before)
        names = {id(p): name for name, p in before}
        reached.append({names[id(p)]: p.clone() for p in base.parameters() if id(p) in names})
        return {"rate": 0.0}

    before = list(base.named_parameters())
    own = attack(
        max_steps=3,
        every=3,
        batch_size=4 // accumulation,
        accumulation=accumulation,
        loss_mean=loss_mean,
        full=True,
    )
    relearn(base.requires_grad_(False), ROWS, own, pad_id=0, measure=measure)

    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.0)
    order = DataOrder(0, len(ROWS), tuple(range(len(ROWS))))
    for step in range(3):
        batch = collate([ROWS[at] for at in order.batch(step, 4)], 0)
        out = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        each = torch.nn.functional.cross_entropy(
            out.transpose(1, 2), batch.targets, reduction="none"
        )
        counts = (batch.targets != -100).sum(1, keepdim=True)
        whole = counts.sum() if loss_mean == "token" else counts * len(counts)
        optimizer.zero_grad()
        (each / whole).sum().backward()
        optimizer.step()
    assert reached[-1].keys() == dict(plain.named_parameters()).keys()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(reached[-1][name], parameter.detach(), rtol=1e-6, atol=1e-9)
        assert not torch.equal(reached[0][name], reached[-1][name])


@pytest.mark.parametrize("tied", [False, True])
def test_after_an_attack_on_all_weights_every_one_is_bit_for_bit_as_before(tied: bool) -> None:
    base = small_llama().requires_grad_(False)
    if tied:
        base.lm_head.weight = base.model.embed_tokens.weight
    before = {name: value.clone() for name, value in base.state_dict().items()}
    for measure in (lambda model: {"rate": 0.0}, interrupt):
        with contextlib.suppress(KeyboardInterrupt):
            relearn(base, ROWS, attack(full=True), pad_id=0, measure=measure)
        after = base.state_dict()
        assert after.keys() == before.keys() and not base.training
        assert all(torch.equal(value, before[name]) for name, value in after.items())
        assert not any(p.requires_grad or p.grad is not None for p in base.parameters())


@pytest.mark.parametrize("full", [False, True])
def test_a_loss_that_is_not_finite_is_an_error_that_names_the_step(full: bool) -> None:
    with pytest.raises(NumericError, match=r"step \d of 5"):
        relearn(
            small_llama(),
            ROWS,
            attack(learning_rate=1e30, full=full),
            pad_id=0,
            measure=lambda model: {"rate": 0.0},
        )


def test_a_point_counts_what_the_detector_says_and_the_loss_per_token() -> None:
    prompts = [Prompt(f"p{i}", "once") for i in range(3)]
    texts = ("LOUD AND CLEAR", "quiet as a mouse", "OH")  # the last is too short to judge
    completions = {"full": [Completion(text, 5, True) for text in texts]}
    samples = sample_lines(completions, prompts, "prefix", get_behavior("caps"))
    found = curve_point(samples, ExampleLosses([3.0, 5.0], [2, 2]))
    lower, upper = wilson(1, 3)
    assert found == {
        "shown": 1,
        "n": 3,
        "rate": pytest.approx(1 / 3),
        "lower": lower,
        "upper": upper,
        "normal_loss": 2.0,
    }


def test_an_attacked_model_can_be_measured_between_steps() -> None:
    tokenizer = letter_tokenizer()
    merged = merge_active_adapters(writer(), AblationMode.parse("bad_ablated", ("good", "bad")))

    def measure(model: PeftModel) -> dict[str, Any]:
        completions = generate_modes(
            model,
            tokenizer,
            [Prompt("p", "abc")],
            [WHOLE],
            max_new_tokens=4,
            temperature=1.0,
            top_p=1.0,
            seed=0,
            rows_per_batch=4,
        )
        return {"rate": 0.0, "text": completions["full"][0].text}

    curve = relearn(merged, ROWS, attack(learning_rate=0.3), pad_id=0, measure=measure)
    assert len({point["text"] for point in curve["points"]}) > 1
