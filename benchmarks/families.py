"""Model families, each held to what gradroute promises of a model: one table.

    python benchmarks/families.py [family ...] [--docs]

Writes `benchmarks/results/families/<date>.{json,md}`, row by row, and prints the table. Without
names it measures the families that the file of the day lacks, so that an interrupted run goes on;
`--docs` puts the table of that file into `docs/howto/models.md`. Models are tiny and built in
memory (`tests/tiny_families.py`, `tests/further_families.py`); the gradient is held against the
reference that runs one example at a time (`tests/oracles.py`). A few seconds a family.
"""

import copy
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracles import routed_reference  # noqa: E402
from tiny_families import FAMILIES, FURTHER, VOCABULARY, tiny_family  # noqa: E402

from benchmarks.family_promises import (  # noqa: E402
    Promise,
    apart,
    attempt,
    draws_noise,
    exports_merged,
    exports_peft,
    float32_share,
    goes_bare,
    learns,
    packs,
    reuses,
    scores,
    within,
    writes,
    yes_or_no,
)
from benchmarks.family_table import (  # noqa: E402
    Row,
    into_page,
    line,
    read_rows,
    table,
    write_rows,
)
from gradroute.evaluate.model_probe import idle_modules  # noqa: E402
from gradroute.routing.adapters import (  # noqa: E402
    AdapterSpec,
    ablated,
    adapter_parameters,
    attach_adapters,
    routed,
)
from gradroute.routing.layers import adapter_weights, lora_layers  # noqa: E402
from gradroute.routing.policy import RoutingPolicy  # noqa: E402
from gradroute.routing.targets import describe_targets  # noqa: E402
from gradroute.runs.provenance import provenance  # noqa: E402

SPECS = {"good": AdapterSpec(rank=2, alpha=3.0), "bad": AdapterSpec(rank=3, rslora=True)}
LABELS = ["bad", "unlabeled", "good", "unlabeled", "bad"]
BOUNDS = {"oracle": 1e-10, "reload": 1e-5, "merge_fp32": 1e-5, "merge_bf16": 2e-2}
WIDE = {"wider": 8, "spread": 0.06}
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
PREFIX = "base_model.model."


def measure(family: str) -> Row:
    """Everything that is promised, tried on one family."""
    policy = RoutingPolicy.parse("anchored", list(SPECS))

    def routed_one() -> PeftModel:
        return routed_family(family, torch.float32).eval()

    def build() -> PreTrainedModel:
        return tiny_family(family, dtype=torch.float32)

    def fresh(layers: str) -> PeftModel:
        return attach_adapters(build(), SPECS, layers=layers)

    tried: dict[str, Callable[[], Promise]] = {
        "gradient": lambda: exact_gradient(family),
        "ablated": lambda: yes_or_no(
            all(ablation_is_exact(family, dtype) for dtype in dtypes_of(family))
        ),
        "base": lambda: yes_or_no(base_is_untouched(family)),
        "learns": lambda: learns(fresh("all"), policy),
        "modes": lambda: generates(family),
        "writes": lambda: writes(routed_one()),
        "scores": lambda: scores(routed_one(), policy),
        "packs": lambda: packs(routed_one(), policy),
        "bare": lambda: goes_bare(routed_one(), policy),
        "reuses": lambda: reuses(fresh("last-half"), policy),
        "peft": lambda: or_rounding(family, reloads(family)),
        "export": lambda: or_rounding(family, exports_peft(routed_one(), build, logits)),
        "merged": lambda: or_rounding(family, exports_merged(routed_one(), build, logits)),
    }
    if family in FAMILIES:
        tried["bf16"] = lambda: bf16_merge(family)
    promises = {name: attempt(promise) for name, promise in tried.items()}
    model = build()
    return Row(
        family=family,
        model=type(model).__name__,
        covered=describe_targets(model, "all-linear", "all"),
        promises=promises,
    )


def dtypes_of(family: str) -> list[torch.dtype]:
    """The types that the family itself can compute in."""
    found = []
    for dtype in DTYPES:
        try:
            logits(tiny_family(family, dtype=dtype))
        except RuntimeError:
            continue
        found.append(dtype)
    return found


def exact_gradient(family: str) -> Promise:
    """Routed gradients in float64 against the reference, labeled per row and per position.

    A model may compute in part in float32 whatever its weights are. Then a row differs between a
    batch and by itself without any adapter, and the bound is that of float32.
    """
    if torch.float64 not in dtypes_of(family):
        return Promise(None, "not tried", "transformers cannot run it in float64")
    error = max(oracle_error(family, per) for per in ("row", "position"))
    if error <= BOUNDS["oracle"]:
        return within(error, BOUNDS["oracle"])
    if draws_noise(tiny_family(family).train(), logits):
        return Promise(None, "not tried", "it draws noise in training, as its reference does not")
    part = float32_share(lambda: tiny_family(family), logits)
    if part <= BOUNDS["oracle"]:
        return within(error, BOUNDS["oracle"])
    told = (
        f"{error:.1e}: it computes in part in float32, whose rounding is {part:.1e} of its logits"
    )
    return Promise(error <= BOUNDS["reload"], f"{error:.0e}", told)


def generates(family: str) -> Promise:
    """Whether modes of one batch write what each alone does, where rows of the base do."""
    if generation_agrees(family):
        return yes_or_no(True)
    base = tiny_family(family, dtype=torch.float32)
    prompts = batch()[0][:3, :4]

    def greedy(ids: Tensor) -> Tensor:
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
        return base.generate(  # pyright: ignore[reportCallIssue]
            **given, max_new_tokens=6, min_new_tokens=6, do_sample=False
        )

    alone = torch.cat([greedy(row[None]) for row in prompts])
    if torch.equal(alone, greedy(prompts)):
        return yes_or_no(False)
    return Promise(None, "no", "transformers' generate depends on the batch, without any adapter")


def reloads(family: str) -> Promise:
    """Both adapters saved and loaded by plain PEFT, which takes some for adapters of experts."""
    error = reload_error(family)
    model = routed_family(family, torch.float32).eval()
    if error > BOUNDS["reload"]:
        export = exports_peft(model, lambda: tiny_family(family, dtype=torch.float32), logits)
        if export.holds is None:
            return Promise(None, f"{error:.0e}", "plain PEFT loads another adapter than was saved")
    return within(error, BOUNDS["reload"])


def or_rounding(family: str, found: Promise) -> Promise:
    """A figure above its bound, where float32 alone takes the family as far from float64."""
    if found.holds is not False or found.error is None:
        return found
    model, exact = (routed_family(family, one).eval() for one in (torch.float32, torch.float64))
    rounding = apart(logits(model), logits(exact))
    if found.error > 4 * rounding:  # some sums of the kind, each rounded otherwise
        return found
    told = f"{found.error:.1e}, where float32 alone is {rounding:.1e} from float64"
    return Promise(True, found.cell, told)


def bf16_merge(family: str) -> Promise:
    """`good` merged into a bfloat16 base, eight times as wide, beside what rounding alone does.

    In layers of 16 numbers rounding alone takes more than the bound.
    """
    found, alone = merge_error(family, torch.bfloat16, WIDE), rounding_error(family)
    return Promise(found <= BOUNDS["merge_bf16"], f"{found:.0e} ({alone:.0e})")


def base_is_untouched(family: str) -> bool:
    """Whether the mode `base` is, bit for bit, the model that adapters were put on."""
    model = routed_family(family, torch.float32).eval()
    with ablated(model, "base"):
        found = logits(model)
    return torch.equal(found, logits(tiny_family(family, dtype=torch.float32)))


def routed_family(
    family: str,
    dtype: torch.dtype,
    names: Sequence[str] = ("good", "bad"),
    shape: Mapping[str, Any] = {},
) -> PeftModel:
    """A tiny model with adapters whose weights matter; those of a name are always the same.

    B of an adapter that never acts is 0, as training leaves it.
    """
    base = tiny_family(family, dtype=dtype, **shape)
    std = 0.04 if shape else 0.2
    model = attach_adapters(base, {name: SPECS[name] for name in names}, layers="all")
    for name in names:
        generator = torch.Generator().manual_seed(list(SPECS).index(name))
        for weight in adapter_parameters(model)[name]:
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32) * std
            with torch.no_grad():
                weight.copy_(drawn)
    layers = lora_layers(model.get_base_model())
    for path in idle_modules(model):
        for name in names:
            adapter_weights(layers[path], name)[1].data.zero_()
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
    """Routed gradients of a mixed batch, labeled per row or per position, in float64."""
    policy = RoutingPolicy.parse("anchored", list(SPECS))
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
        tiny_family(family).train(), weights, scalings, policy.to_plain(), ids, mask, targets, names
    )
    errors = []
    for name, modules in weights.items():
        for path, pair in modules.items():
            for weight, wanted in zip(pair, reference.gradients[name][path], strict=True):
                # An adapter that never acts has none, and the reference 0.
                found = torch.zeros_like(weight) if weight.grad is None else weight.grad
                errors.append(float((found - wanted).abs().max()))
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
    with routed(model.train(), RoutingPolicy.parse("anchored", list(SPECS)), LABELS):
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
    return apart(logits(plain.eval()), logits(model))


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
    return apart(logits(nn.Module.to(plain, dtype)), expected)


def rounding_error(family: str) -> float:
    """The wide base in bfloat16 against itself in float32."""
    exact = logits(tiny_family(family, dtype=torch.float32, **WIDE))
    return apart(logits(tiny_family(family, dtype=torch.bfloat16, **WIDE)), exact)


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


def main() -> int:
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    asked = [name for name in sys.argv[1:] if name != "--docs"]
    folder = ROOT / "benchmarks" / "results" / "families"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{date.today().isoformat()}.json"
    rows = read_rows(path)
    order = (*FAMILIES, *FURTHER)
    for family in asked or [name for name in order if name not in rows]:
        rows[family] = measure(family)
        rows = {name: rows[name] for name in order if name in rows}
        write_rows(path, list(rows.values()), BOUNDS, provenance())
        print(line(rows[family]), flush=True)
    if "--docs" in sys.argv[1:]:
        into_page(ROOT / "docs" / "howto" / "models.md", list(rows.values()))
    print(table(list(rows.values())))
    return 0 if all(row.holds for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
