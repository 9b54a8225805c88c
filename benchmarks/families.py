"""Every promised model family, held to the figures that routing promises: one table.

    python benchmarks/families.py

Writes `benchmarks/results/families/<date>.{json,md}` and prints the table. Models are tiny and
built in memory (`tests/tiny_families.py`); the gradient is held against the reference that runs
one example at a time (`tests/oracles.py`). About a minute on two cores.
"""

import copy
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracles import routed_reference  # noqa: E402
from tiny_families import FAMILIES, VOCABULARY, tiny_family  # noqa: E402

from gradroute.environment import provenance  # noqa: E402
from gradroute.routing.adapters import (  # noqa: E402
    AdapterSpec,
    ablated,
    adapter_parameters,
    attach_adapters,
    routed,
)
from gradroute.routing.hosting import adapter_weights, lora_layers  # noqa: E402
from gradroute.routing.policy import RoutingPolicy  # noqa: E402
from gradroute.routing.targets import describe_targets  # noqa: E402

SPECS = {"good": AdapterSpec(rank=2, alpha=3.0), "bad": AdapterSpec(rank=3, rslora=True)}
LABELS = ["bad", "unlabeled", "good", "unlabeled", "bad"]
BOUNDS = {"oracle": 1e-10, "reload": 1e-5, "merge_fp32": 1e-5, "merge_bf16": 2e-2}
WIDE = {"wider": 8, "spread": 0.06}
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Row:
    """The figures of one family.

    Attributes:
        oracle: Largest absolute difference of a routed gradient to the reference, float64.
        ablated: Whether `bad_ablated` with `bad` full of NaN is, bit for bit, a model without it,
            in float64, float32 and bfloat16.
        reload: Saved, and loaded by plain PEFT: largest difference of logits over the largest
            logit, float32.
        merge_fp32: `good` merged into the base against `bad_ablated`, likewise.
        merge_bf16: The same for a bfloat16 base with float32 adapters, eight times as wide: in
            layers of 16 numbers rounding alone takes more than the bound.
        bf16_alone: What rounding that base to bfloat16 does to its logits, without any adapter.
        generated: Greedy tokens that agree between a batch of modes and each mode alone.
        covered: What has adapters and what does not.
    """

    family: str
    oracle: float
    ablated: bool
    reload: float
    merge_fp32: float
    merge_bf16: float
    bf16_alone: float
    generated: bool
    covered: str

    @property
    def holds(self) -> bool:
        within = all(getattr(self, name) <= bound for name, bound in BOUNDS.items())
        return within and self.ablated and self.generated


def measure(family: str) -> Row:
    """All figures of one family."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    return Row(
        family=family,
        oracle=max(oracle_error(family, per) for per in ("row", "position")),
        ablated=all(ablation_is_exact(family, dtype) for dtype in dtypes),
        reload=reload_error(family),
        merge_fp32=merge_error(family, torch.float32),
        merge_bf16=merge_error(family, torch.bfloat16, WIDE),
        bf16_alone=rounding_error(family),
        generated=generation_agrees(family),
        covered=describe_targets(tiny_family(family), "all-linear", "all"),
    )


def routed_family(
    family: str,
    dtype: torch.dtype,
    names: Sequence[str] = ("good", "bad"),
    shape: Mapping[str, Any] = {},
) -> PeftModel:
    """A tiny model with adapters whose weights matter; those of a name are always the same."""
    base = tiny_family(family, dtype=dtype, **shape)
    std = 0.04 if shape else 0.2
    model = attach_adapters(base, {name: SPECS[name] for name in names}, layers="all")
    for name in names:
        generator = torch.Generator().manual_seed(list(SPECS).index(name))
        for weight in adapter_parameters(model)[name]:
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32) * std
            with torch.no_grad():
                weight.copy_(drawn)
    return model


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, mask and targets of rows of unequal length, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (len(LABELS), 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    mask[3, 4:] = 0
    targets = torch.full_like(ids, -100)
    targets[:, :-1] = torch.where(mask[:, 1:] == 1, ids[:, 1:], -100)
    return ids, mask, targets


def logits(model: nn.Module) -> Tensor:
    """Logits at the positions that are no padding [n, vocabulary], without gradient."""
    ids, mask, _ = batch()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask == 1]


def oracle_error(family: str, per: str) -> float:
    """Routed gradients of a mixed batch, labelled per row or per position, in float64."""
    policy = RoutingPolicy.from_value("anchored", list(SPECS))
    ids, mask, targets = batch()
    labels: Any = LABELS
    names = [[label] * ids.shape[1] for label in LABELS]
    if per == "position":
        generator = torch.Generator().manual_seed(1)
        labels = torch.randint(len(policy.labels), tuple(ids.shape), generator=generator)
        names = [[policy.labels[i] for i in row] for row in labels.tolist()]
    model = routed_family(family, torch.float64)
    with routed(model.train(), policy, labels):
        out = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        F.cross_entropy(out.flatten(0, 1), targets.flatten(), ignore_index=-100).backward()
    weights, scalings = factors(model)
    reference = routed_reference(
        tiny_family(family), weights, scalings, policy.to_dict(), ids, mask, targets, names
    )
    errors = []
    for name, modules in weights.items():
        for path, pair in modules.items():
            for weight, wanted in zip(pair, reference.gradients[name][path], strict=True):
                assert weight.grad is not None
                errors.append(float((weight.grad - wanted).abs().max()))
    return max(errors)


def factors(model: PeftModel) -> tuple[dict[str, dict[str, tuple[Tensor, Tensor]]], dict]:
    """adapter -> module -> (A, B), and adapter -> scaling."""
    layers = lora_layers(model)
    weights = {
        name: {
            path.removeprefix(PREFIX): adapter_weights(layer, name)
            for path, layer in layers.items()
        }
        for name in SPECS
    }
    return weights, dict(next(iter(layers.values())).scaling)


def ablation_is_exact(family: str, dtype: torch.dtype) -> bool:
    """Whether the model with `bad` ablated equals one that never had it, after a training step."""
    model = routed_family(family, dtype)
    ids, mask, targets = batch()
    optimizer = torch.optim.AdamW(adapter_parameters(model)["good"], lr=1e-2)
    with routed(model.train(), RoutingPolicy.from_value("anchored", list(SPECS)), LABELS):
        out = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        F.cross_entropy(out.flatten(0, 1).float(), targets.flatten()).backward()
    optimizer.step()
    with torch.no_grad():
        for weight in adapter_parameters(model)["bad"]:
            weight.fill_(torch.nan)
    alone = routed_family(family, dtype, names=("good",)).eval()
    with torch.no_grad():
        for mine, theirs in zip(
            adapter_parameters(alone)["good"], adapter_parameters(model)["good"], strict=True
        ):
            mine.copy_(theirs)
    with ablated(model.eval(), "bad_ablated"):
        found = logits(model)
    return bool(found.isfinite().all()) and torch.equal(found, logits(alone))


def reload_error(family: str) -> float:
    """Both adapters saved, and loaded on a fresh base by plain PEFT."""
    model = routed_family(family, torch.float32).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        base = tiny_family(family, dtype=torch.float32)
        plain = PeftModel.from_pretrained(base, f"{folder}/good", adapter_name="good")
        plain.load_adapter(f"{folder}/bad", adapter_name="bad")
    plain.base_model.set_adapter(["good", "bad"])  # pyright: ignore
    return _relative(logits(plain.eval()), logits(model))


def merge_error(
    family: str,
    dtype: torch.dtype,
    shape: Mapping[str, Any] = {},
) -> float:
    """`good` merged in float32 and cast to the base's dtype, against `bad_ablated`."""
    model = routed_family(family, dtype, shape=shape).eval()
    with ablated(model, "bad_ablated"):
        expected = logits(model)
    merged = copy.deepcopy(model)
    nn.Module.to(merged, torch.float32)
    plain = merged.merge_and_unload(adapter_names=["good"])  # pyright: ignore
    return _relative(logits(nn.Module.to(plain, dtype)), expected)


def rounding_error(family: str) -> float:
    """The wide base in bfloat16 against itself in float32."""
    exact = logits(tiny_family(family, dtype=torch.float32, **WIDE))
    return _relative(logits(tiny_family(family, dtype=torch.bfloat16, **WIDE)), exact)


def generation_agrees(family: str) -> bool:
    """Greedy tokens of three modes in one batch, and of each mode by itself."""
    model = routed_family(family, torch.float32).eval()
    modes = ["full", "bad_ablated", "base"]
    ids, _, _ = batch()
    prompts = ids[:3, :4]
    mask = torch.ones_like(prompts)
    prompts[1, 0], mask[1, 0] = 0, 0  # padded on the left

    def greedy(ids: Tensor, mask: Tensor) -> Tensor:
        given = {"input_ids": ids, "attention_mask": mask, "pad_token_id": 0}
        return model.generate(**given, max_new_tokens=6, min_new_tokens=6, do_sample=False)

    with ablated(model, modes):
        together = greedy(prompts.repeat(3, 1), mask.repeat(3, 1)).chunk(3)
    for mode, rows in zip(modes, together, strict=True):
        with ablated(model, mode):
            if not torch.equal(greedy(prompts, mask), rows):
                return False
    return True


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max() / other.float().abs().max())


def table(rows: Sequence[Row]) -> str:
    """The figures as markdown."""
    lines = [
        "| family | gradient, largest error | ablated = never had it | PEFT reload | "
        "merge fp32 | merge bf16 (rounding alone) | modes generate alike | all-linear |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.family} | {row.oracle:.1e} | {_yes(row.ablated)} | {row.reload:.1e} | "
            f"{row.merge_fp32:.1e} | {row.merge_bf16:.1e} ({row.bf16_alone:.1e}) | "
            f"{_yes(row.generated)} | {row.covered} |"
        )
    return "\n".join(lines)


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"


def main() -> int:
    rows = [measure(family) for family in sys.argv[1:] or FAMILIES]
    facts = {"bounds": BOUNDS, "families": [asdict(row) for row in rows], **provenance()}
    text = table(rows)
    folder = ROOT / "benchmarks" / "results" / "families"
    folder.mkdir(parents=True, exist_ok=True)
    today = date.today().isoformat()
    (folder / f"{today}.json").write_text(json.dumps(facts, indent=1) + "\n")
    versions = ", ".join(f"{name} {found}" for name, found in facts["versions"].items())
    note = (
        f"# Model families, {today}\n\n{text}\n\nBounds: {BOUNDS}. Commit {facts['commit']}; "
        f"{facts['hardware']['processor']}; {versions}.\n"
    )
    (folder / f"{today}.md").write_text(note)
    print(text)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
