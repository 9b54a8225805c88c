"""What is measured: models by size, with random weights, and batches of random tokens.

Speed does not depend on the weights, so nothing is downloaded: a size is a configuration. Variants
share the frozen weights of one base, as far as they do not change them.
"""

import copy
import random
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradroute.data.batches import Batch, TokenizedExample, collate
from gradroute.routing.adapters import AdapterSpec, attach_adapters, without_peft_warnings

RANK = 32  # of each of two adapters; one that stands for both has twice as much
LABELS = ("bad", "unlabeled", "good", "unlabeled")  # half of the examples are labeled
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Size:
    """The numbers that a Llama is made from."""

    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int


SIZES = {
    "2M": Size(2048, 192, 512, 4, 6, 6),  # the embedded story model
    "15M": Size(32000, 288, 768, 6, 6, 6),
    "15M-deep": Size(2048, 256, 688, 18, 8, 8),  # deeper than wide, and few words
    "15M-262k": Size(262144, 288, 768, 6, 6, 6),  # as many words as Gemma has
    "135M": Size(49152, 576, 1536, 30, 9, 3),  # SmolLM2-135M
    "tiny": Size(256, 32, 64, 2, 2, 2),  # for trying
}


@dataclass(frozen=True)
class Shape:
    """A size with the batch that a step takes: `2M-16x32` is 16 examples of 32 tokens."""

    name: str
    size: Size
    examples: int
    tokens: int


def shape(name: str) -> Shape:
    """The shape of this name, `<size>-<examples>x<tokens>`."""
    size, _, batch = name.rpartition("-")
    examples, _, tokens = batch.partition("x")
    if size not in SIZES or not (examples.isdigit() and tokens.isdigit()):
        raise SystemExit(
            f"error: the shape {name} is not known; write <size>-<examples>x<tokens>, of the sizes "
            f"{', '.join(SIZES)}."
        )
    return Shape(name, SIZES[size], int(examples), int(tokens))


def base(size: Size, seed: int = 0) -> LlamaForCausalLM:
    """A frozen model of this size with random weights, in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).float()
    model.requires_grad_(False)
    return model


def sharing(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A model of its own, on the weights of this one."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


def half(model: LlamaForCausalLM) -> list[int]:
    """The numbers of the last half of the layers."""
    count = model.config.num_hidden_layers
    return list(range(count // 2, count))


def routed_model(
    model: LlamaForCausalLM, adapters: int = 2, layers: str = "all", rank: int = 2 * RANK
) -> PeftModel:
    """Gradroute's adapters `good`, `bad`, `bad2`, … of this rank in all, on a base of its own."""
    names = ["good", "bad", *(f"bad{n}" for n in range(2, adapters))]
    specs = {name: AdapterSpec(rank=rank // adapters) for name in names[:adapters]}
    return attach_adapters(sharing(model), specs, layers=layers).train()


def peft_model(
    model: LlamaForCausalLM, ranks: dict[str, int], layers: list[int] | None = None
) -> PeftModel:
    """PEFT's own adapters, all of them active and trainable, on a base of its own."""
    first, *others = ranks
    configs = {
        name: LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=list(LINEAR),
            layers_to_transform=layers,
            task_type="CAUSAL_LM",
        )
        for name, rank in ranks.items()
    }
    with without_peft_warnings():
        adapted = get_peft_model(sharing(model), configs[first], adapter_name=first)  # pyright: ignore
        for name in others:
            adapted.add_adapter(name, configs[name])
    adapted.base_model.set_adapter(list(ranks))  # pyright: ignore
    assert isinstance(adapted, PeftModel)
    return adapted.train()


def fill(model: PeftModel, seed: int) -> None:
    """Weights of the adapters that matter, from a seed."""
    draw = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0.0, 0.05, generator=draw)


def tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """A tokenizer that writes each token as a word of its own, without special tokens."""
    words = {f"w{number}": number for number in range(size.vocabulary)}
    plain = Tokenizer(models.WordLevel(words, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=plain)


def rows(of: Shape, label_ids: list[int], seed: int = 0) -> list[TokenizedExample]:
    """Examples of random tokens, all of one length, every token a target, the labels mixed."""
    draw = random.Random(seed)
    labels = [label_ids[at % len(label_ids)] for at in range(of.examples)]
    draw.shuffle(labels)
    return [
        TokenizedExample(
            id=str(at),
            input_ids=tuple(draw.randrange(3, of.size.vocabulary) for _ in range(of.tokens)),
            target_start=0,
            label_id=label,
            true_label="",
        )
        for at, label in enumerate(labels)
    ]


def batch(of: Shape, label_ids: list[int], seed: int = 0) -> Batch:
    """The batch of a step."""
    return collate(rows(of, label_ids, seed), pad_id=0)
