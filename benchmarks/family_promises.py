"""What a model family is held to besides its gradients: measuring, packing, export, training.

Every function takes a routed model, or a way to build its base, and returns a `Promise`. Nothing
here knows which family it is.
"""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, processors
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gradroute.config.run_config import AdapterConfig
from gradroute.data.batches import TokenizedExample, collate
from gradroute.errors import ConfigError
from gradroute.evaluate.batch_check import why_alone
from gradroute.evaluate.generation import Prompt, generate_modes
from gradroute.evaluate.losses import held_out_losses
from gradroute.evaluate.model_probe import idle_modules
from gradroute.export.files import write_adapter, write_model
from gradroute.export.merging import merge
from gradroute.export.proof import load_merged
from gradroute.export.rank_concat import OneAdapter
from gradroute.routing.adapters import ablated, adapter_state, without_peft_warnings
from gradroute.routing.frozen_check import lower_layers
from gradroute.routing.layers import adapter_weights, lora_layers
from gradroute.routing.policy import AblationMode, RoutingPolicy
from gradroute.train.model_checks import check_packing, needs_no_mask
from gradroute.train.optimizer import build_optimizer
from gradroute.train.step import train_step

CLOSE = 1e-5
"""Largest difference that is rounding in float32, as a share of the largest number."""
NAMES = ("good", "bad")
MODES = [AblationMode.parse(mode, NAMES) for mode in ("full", "bad_ablated", "base")]
NEW_TOKENS = 8
LETTERS = "abcdefghijklmnopqrstu"
TEXTS = ("abcdefgh", "fe", "hgfe", "abbccddee", "c")

Forward = Callable[[nn.Module], Tensor]
"""A model's logits on some rows."""


@dataclass(frozen=True)
class Promise:
    """Whether something holds for a family.

    Attributes:
        holds: None where gradroute says beforehand that it does not, and does without or refuses.
        cell: What the table says.
        why: A sentence for below the table; empty where there is nothing to say.
        error: The figure, where it is one.
    """

    holds: bool | None
    cell: str
    why: str = ""
    error: float | None = None


def within(error: float, bound: float, where: str = "") -> Promise:
    """A figure that must not be above its bound."""
    holds = error <= bound
    why = "" if holds else f"{where}{error:.1e}, allowed {bound:g}"
    return Promise(holds, f"{error:.0e}", why, error)


def yes_or_no(holds: bool) -> Promise:
    """A promise that is kept or not, with nothing to count."""
    return Promise(holds, "yes" if holds else "no")


def attempt(promise: Callable[[], Promise]) -> Promise:
    """What a function returns; where it raises, that the promise is not kept, and the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return promise()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        return Promise(False, "fails", f"{type(error).__name__}: {reason}")


def letters() -> PreTrainedTokenizerFast:
    """One token a letter, ids 3 to 23, behind padding, beginning and end."""
    vocabulary = {token: at for at, token in enumerate(("<p>", "<s>", "</s>", *LETTERS))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<p>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<p>"
    )


def examples(policy: RoutingPolicy) -> list[TokenizedExample]:
    """Texts of unequal length under every label."""
    return [
        TokenizedExample(
            id=text,
            input_ids=(1, *(3 + LETTERS.index(letter) for letter in text), 2),
            target_start=0,
            label_id=at % len(policy.labels),
            true_label="good",
        )
        for at, text in enumerate(TEXTS)
    ]


def writes(model: PeftModel) -> Promise:
    """Greedy completions of three modes in one batch, against the whole model token by token.

    The reference has neither cache, batch nor padding. Where a family writes something else with
    its own cache, it is held against transformers' `generate` of each row by itself.
    """
    tokenizer = letters()
    prompts = [Prompt(str(at), text) for at, text in enumerate(TEXTS)]
    found = generate_modes(
        model,
        tokenizer,
        prompts,
        MODES,
        max_new_tokens=NEW_TOKENS,
        temperature=0.0,
        top_p=1.0,
        seed=0,
        rows_per_batch=64,
    )
    with ablated(model, "base"):
        alone = why_alone(_inner(model))
    cell = "one row at a time" if alone else "yes"
    places = [(mode.name, at) for mode in MODES for at in range(len(TEXTS))]
    wrong = [
        (mode, at)
        for mode, at in places
        if found[mode][at].text != _written(model, tokenizer, TEXTS[at], mode, cached=False)
    ]
    if not wrong:
        return Promise(True, cell, alone)
    told = f"{len(wrong)} of {len(places)} completions differ from the model without its cache"
    by_cache = all(
        found[mode][at].text == _written(model, tokenizer, TEXTS[at], mode, cached=True)
        for mode, at in places
    )
    if by_cache:
        return Promise(True, cell, f"{told}, as transformers' own of each row by itself do")
    return Promise(False, "no", told)


def _written(
    model: PeftModel, tokenizer: PreTrainedTokenizerFast, text: str, mode: str, *, cached: bool
) -> str:
    ids = torch.tensor([[1, *(3 + LETTERS.index(letter) for letter in text)]])
    start = ids.shape[1]
    with torch.no_grad(), ablated(model.eval(), mode):
        if cached:
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
            ids = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
        for _ in range(0 if cached else NEW_TOKENS):
            mask = torch.ones_like(ids)
            last = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -1]
            if int(token := last.argmax(-1)) == 2:
                break
            ids = torch.cat([ids, token[:, None]], dim=1)
    written = tokenizer.decode(ids[0, start:].tolist(), skip_special_tokens=True)
    assert isinstance(written, str)
    return written


def scores(model: PeftModel, policy: RoutingPolicy) -> Promise:
    """Held-out losses of three modes side by side in padded batches, against each text alone."""
    rows = examples(policy)

    def sums(rows: Sequence[TokenizedExample], modes: Sequence[AblationMode]) -> list[list[float]]:
        found = held_out_losses(model, rows, modes, pad_id=0, rows_per_batch=64)
        return [found[mode.name].sums for mode in modes]

    together = torch.tensor(sums(rows, MODES))
    alone = torch.tensor([[sums([row], [mode])[0][0] for row in rows] for mode in MODES])
    error = float((together - alone).abs().max() / alone.abs().max())
    return within(error, CLOSE, "losses in a batch differ from those of each text alone: ")


def packs(model: PeftModel, policy: RoutingPolicy) -> Promise:
    """Whether examples may share a row."""
    try:
        check_packing(model, examples(policy), 0)
    except ConfigError as error:
        return Promise(None, "refused", str(error).removeprefix("train.packing: "))
    return Promise(True, "yes")


def goes_bare(model: PeftModel, policy: RoutingPolicy) -> Promise:
    """Whether padding goes without a mask."""
    return Promise(True, "yes") if needs_no_mask(model, examples(policy), 0) else _WITH_MASK


_WITH_MASK = Promise(None, "masked")


def reuses(upper: PeftModel, policy: RoutingPolicy) -> Promise:
    """Whether what leaves the layers below the adapters may be kept.

    Args:
        upper: A model with adapters in the last half of its layers.
        policy: Of its labels.
    """
    try:
        lower_layers(upper, [row.input_ids for row in examples(policy)])
    except ConfigError as error:
        return Promise(None, "refused", str(error))
    return Promise(True, "yes")


def one_adapter(model: PeftModel, name: str) -> OneAdapter:
    """An adapter of a model as an export takes it."""
    config = model.peft_config[name].to_dict()
    state = {
        key.removeprefix("base_model.model."): tensor
        for key, tensor in adapter_state(model, name).items()
    }
    pairs = {
        module.removesuffix(".lora_A.weight"): (down, state[module.replace("lora_A", "lora_B")])
        for module, down in state.items()
        if module.endswith(".lora_A.weight")
    }
    return OneAdapter(pairs, config["r"], config["lora_alpha"], config["fan_in_fan_out"])


def exports_peft(
    model: PeftModel, build: Callable[[], PreTrainedModel], logits: Forward
) -> Promise:
    """`good` in the files of an export, on a fresh base in plain PEFT, against `bad_ablated`."""
    with ablated(model.eval(), "bad_ablated"):
        expected = logits(model)
    base = build()
    with tempfile.TemporaryDirectory() as folder:
        adapter = one_adapter(model, "good")
        try:
            write_adapter(Path(folder), adapter, base, base_name=None, dtype=torch.float32)
        except ConfigError as error:
            return Promise(None, "refused", str(error))
        with without_peft_warnings():
            plain = PeftModel.from_pretrained(base, folder)
    return within(apart(logits(plain.eval()), expected), CLOSE)


def exports_merged(
    model: PeftModel, build: Callable[[], PreTrainedModel], logits: Forward
) -> Promise:
    """`good` merged, written and read again by plain transformers, against `bad_ablated`."""
    with ablated(model.eval(), "bad_ablated"):
        expected = logits(model)
    base = build()
    try:
        merge(base, one_adapter(model, "good"), torch.float32)
    except ConfigError as error:
        return Promise(None, "refused", str(error))
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), base, torch.float32)
        again = load_merged_model(Path(folder))
    return within(apart(logits(again), expected), CLOSE)


def load_merged_model(folder: Path) -> PreTrainedModel:
    """A folder as its readers load it; its tokenizer is one of letters."""
    letters().save_pretrained(folder)
    return load_merged(folder, torch.device("cpu")).inner


def learns(model: PeftModel, policy: RoutingPolicy) -> Promise:
    """Two optimizer steps from a fresh start: finite, and the B that moved are those foreseen."""
    settings = {name: AdapterConfig(rank=2) for name in NAMES}
    optimizer = build_optimizer(model, settings, 1e-3)
    model.train()
    for _ in range(2):
        batch = collate(examples(policy), 0)
        train_step(model, optimizer, [batch], policy, loss_mean="token", rate=1.0)
    still = [
        path.removeprefix("base_model.model.")
        for path, layer in lora_layers(model).items()
        for name in NAMES
        if name in layer.lora_B and not adapter_weights(layer, name)[1].any()
    ]
    still = list(dict.fromkeys(still))
    if still != list(idle_modules(model)):
        return Promise(False, "no", f"adapters that have not learned, unforeseen: {still[:2]}")
    if not still:
        return Promise(True, "yes")
    kinds = sorted({module.rpartition(".")[2] for module in still})
    told = f"said before training: adapters on {len(still)} modules never act ({', '.join(kinds)})"
    return Promise(None, f"all but {len(still)}", told)


def draws_noise(base: PreTrainedModel, logits: Forward) -> bool:
    """Whether a base in training mode, with dropout set to 0, computes something else each time."""
    with torch.random.fork_rng():
        first, second = (logits(base) for _ in range(2))
    return not torch.equal(first, second)


def float32_share(build: Callable[[], PreTrainedModel], logits: Forward) -> float:
    """What a float64 model's logits show of float32 on the way, over the largest logit.

    Along a line of inputs a smooth function has a second difference as small as the square of the
    step; rounding to float32 is no smooth function.
    """
    found = []
    for factor in (1 - 1e-6, 1.0, 1 + 1e-6):
        base = build()
        weight = base.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        weight.data *= factor
        found.append(logits(base).double())
    return float((found[0] - 2 * found[1] + found[2]).abs().max() / found[1].abs().max())


def _inner(model: PeftModel) -> PreTrainedModel:
    inner = model.get_base_model()
    assert isinstance(inner, PreTrainedModel)
    return inner


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference over the largest number."""
    return float((one.double() - other.double()).abs().max() / other.double().abs().max())
