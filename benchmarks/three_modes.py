"""Three ablation modes of the same prompts: one generation against three calls of PEFT's.

    python benchmarks/three_modes.py [2M|15M] [rounds]

Prints the median of the rounds' ratios with quartiles, and whether the greedy tokens are equal.
`contenders` is for other programs: it gives the two as functions.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, LoraModel, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path[:0] = [str(Path(__file__).parent.parent)]

from gradroute.evaluate.generation import Prompt, generate_modes  # noqa: E402
from gradroute.routing.adapters import route_adapters  # noqa: E402
from gradroute.routing.hosting import adapter_weights, lora_layers  # noqa: E402
from gradroute.routing.policy import AblationMode  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "2M": dict(vocab_size=2048, hidden_size=192, intermediate_size=512, num_hidden_layers=4),
    "15M": dict(vocab_size=32000, hidden_size=288, intermediate_size=768, num_hidden_layers=6),
}
ON = {"full": ["good", "bad"], "bad_ablated": ["good"], "good_ablated": ["bad"]}
PROMPTS, LENGTH, NEW = 16, 32, 64

Tokens = dict[str, list[list[int]]]


def contenders(shape: str) -> dict[str, Callable[[], Tokens]]:
    """`peft` and `gradroute`: each completes the prompts greedily, new tokens by mode."""
    vocabulary = SHAPES[shape]["vocab_size"]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, vocabulary, (PROMPTS, LENGTH), generator=generator)
    plain, routed = _model(shape), _model(shape)
    route_adapters(routed)
    tuner = _tuner(plain)
    tokenizer = _tokenizer(vocabulary)
    prompts = [
        Prompt(str(i), "".join(chr(0x4E00 + token) for token in row))
        for i, row in enumerate(ids.tolist())
    ]
    modes = [AblationMode.parse(name, ["good", "bad"]) for name in ON]

    def peft() -> Tokens:
        found: Tokens = {}
        for name, on in ON.items():
            tuner.set_adapter(on)
            with torch.no_grad():
                out = plain.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=NEW,
                    do_sample=False,
                    pad_token_id=0,
                )
            found[name] = out[:, LENGTH:].tolist()
        return found

    def gradroute() -> Tokens:
        found = generate_modes(
            routed,
            tokenizer,
            prompts,
            modes,
            max_new_tokens=NEW,
            temperature=0.0,
            top_p=1.0,
            seed=0,
            rows_per_batch=320,
        )
        return {
            name: [[ord(letter) - 0x4E00 for letter in one.text] for one in own]
            for name, own in found.items()
        }

    return {"peft": peft, "gradroute": gradroute}


def _model(shape: str) -> PeftModel:
    """Random, the same each time; without an end token, so that all rows are written in full."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape], num_attention_heads=6, tie_word_embeddings=True, eos_token_id=None
    )
    lora = LoraConfig(r=32, lora_alpha=32, target_modules="all-linear")
    model = get_peft_model(LlamaForCausalLM(config).eval(), lora, adapter_name="good")
    assert isinstance(model, PeftModel)
    model.add_adapter("bad", lora)
    for layer in lora_layers(model).values():
        for name in ("good", "bad"):
            for weight in adapter_weights(layer, name):
                nn.init.normal_(weight, std=0.05)
    _tuner(model).set_adapter(["good", "bad"])
    return model.eval()


def _tuner(model: PeftModel) -> LoraModel:
    assert isinstance(model.base_model, LoraModel)
    return model.base_model


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One letter per token, so that texts say which tokens were written."""
    inner = Tokenizer(models.BPE(vocab={chr(0x4E00 + i): i for i in range(size)}, merges=[]))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def main() -> None:
    """Interleave the two in random order and print what came out."""
    shape = sys.argv[1] if len(sys.argv) > 1 else "2M"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    torch.set_num_threads(1)
    sides = contenders(shape)
    equal = sides["peft"]() == sides["gradroute"]()
    ratios = []
    for _ in range(rounds):
        spent = {}
        for name in random.sample(list(sides), len(sides)):
            start = time.process_time()
            sides[name]()
            spent[name] = time.process_time() - start
        ratios.append(spent["gradroute"] / spent["peft"])
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{shape}: {middle:.2f} [{low:.2f}-{high:.2f}] of three calls; tokens equal: {equal}")


if __name__ == "__main__":
    main()
