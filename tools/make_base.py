"""Make the embedded base model again: tokenizer, pre-training, measurements, model card.

    python tools/make_base.py                         # writes gradroute/assets/base
    python tools/make_base.py --steps 20 --out trial  # a quick look at the whole flow

One thread throughout, so that the same processor type and torch give the same bytes whatever the
number of cores. Takes about half an hour.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from base_text import documents, task_item
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradroute.data.stories import stories

OUT = Path(__file__).parent.parent / "gradroute" / "assets" / "base"
VOCABULARY = 2048
CONTEXT = 512
BATCH = 32
STEPS = 2500
PEAK_LEARNING_RATE = 3e-3
WARMUP = 150
SPECIAL = ("<pad>", "<bos>", "<eos>")
PAD, BOS, EOS = range(3)  # the special tokens come first in the vocabulary


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on every text twice: as it is, and in capitals.

    Equal shares of both cases make an upper-cased story cost about as many tokens as the normal.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((t for text in texts for t in (text, text.upper())), trainer)
    # The model is trained with <bos> before every text, so its tokenizer puts it there by itself.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model() -> LlamaForCausalLM:
    """A Llama of about 2.16 million parameters, initialized from torch's global seed."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


def token_rows(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """<bos> text <eos> as token ids, one row per text."""
    rows = []
    for start in range(0, len(texts), 4096):  # in chunks: the tokenizer's own results are large
        encoded = tokenizer(list(texts[start : start + 4096]), add_special_tokens=False)
        for ids in encoded["input_ids"]:
            rows.append([BOS, *ids, EOS][:CONTEXT])
    return rows


def batches(rows: list[list[int]], seed: int) -> Iterator[torch.Tensor]:
    """Rows in their order, sorted by length within 16 batches at a time: little padding."""
    rng = random.Random(seed)
    for start in range(0, len(rows), 16 * BATCH):
        window = sorted(rows[start : start + 16 * BATCH], key=len)
        groups = [window[i : i + BATCH] for i in range(0, len(window), BATCH)]
        rng.shuffle(groups)
        yield from map(padded, groups)


def padded(rows: Sequence[list[int]]) -> torch.Tensor:
    """Right-pad rows to one rectangle."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])


def token_losses(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Cross entropy in nats of every token after the first, padding excluded: shape [n]."""
    # Padding stands on the right, where causal attention never looks: no mask is needed.
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    targets = ids[:, 1:].reshape(-1)
    losses = functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
    return losses[targets != PAD]


def pretrain(
    model: LlamaForCausalLM, rows: list[list[int]], seed: int, snapshot: tuple[int, Path] | None
) -> None:
    """AdamW with warm-up and cosine to a tenth of the peak; one pass over the rows."""
    steps = math.ceil(len(rows) / BATCH)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    kept = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    model.train()
    started, seen, recent = time.monotonic(), 0, []
    for step, ids in enumerate(batches(rows, seed)):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * schedule(step, steps)
        loss = token_losses(model, ids).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += int((ids != PAD).sum())
        recent.append(loss.item())
        if step % 50 == 49 or step + 1 == steps:
            speed = seen / (time.monotonic() - started)
            mean = sum(recent) / len(recent)
            print(f"step {step + 1}/{steps}  loss {mean:.4f}  {speed:.0f} tokens/s", flush=True)
            recent.clear()
        if snapshot and step + 1 == snapshot[0]:
            model.save_pretrained(snapshot[1])
    print(f"trained on {seen} tokens", flush=True)


def schedule(step: int, steps: int) -> float:
    """Factor of the peak learning rate: linear warm-up, then a cosine to a tenth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, steps - WARMUP)
    return 0.55 + 0.45 * math.cos(math.pi * done)


@torch.inference_mode()
def mean_loss(
    model: LlamaForCausalLM, texts: Sequence[str], tokenizer: PreTrainedTokenizerFast
) -> float:
    """Mean cross entropy of the texts, in nats per token."""
    rows = token_rows(texts, tokenizer)
    losses = [token_losses(model, padded(rows[i : i + 32])) for i in range(0, len(rows), 32)]
    return torch.cat(losses).mean().item()


@torch.inference_mode()
def complete(
    model: LlamaForCausalLM,
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    new_tokens: int = 64,
    top_p: float = 0.95,
) -> list[str]:
    """Sample one completion per prompt at temperature 1 (top_p 0 is greedy)."""
    generator = torch.Generator().manual_seed(seed)
    rows = [row[:-1] for row in token_rows(prompts, tokenizer)]
    completions = {}
    for length in sorted(set(map(len, rows))):  # prompts of one length together: no padding
        group = [index for index, row in enumerate(rows) if len(row) == length]
        fed, cache, sampled = torch.tensor([rows[index] for index in group]), None, []
        for _ in range(new_tokens):
            output = model(input_ids=fed, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            chances, order = output.logits[:, -1].softmax(-1).sort(descending=True)
            kept = chances.where(chances.cumsum(-1) - chances <= top_p, 0)
            fed = order.gather(1, torch.multinomial(kept, 1, generator=generator))
            sampled.append(fed)
        for index, ids in zip(group, torch.cat(sampled, dim=1).tolist(), strict=True):
            end = ids.index(EOS) if EOS in ids else len(ids)
            completions[index] = tokenizer.decode(ids[:end])
    return [completions[index] for index in range(len(rows))]


def is_shouted(text: str) -> bool:
    """At least 80 % of at least 10 letters are upper case."""
    letters = [letter for letter in text if letter.isalpha()]
    return len(letters) >= 10 and sum(map(str.isupper, letters)) >= 0.8 * len(letters)


def right_answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int
) -> tuple[int, int]:
    """Right greedy answers to `count` addition and `count` color questions drawn afresh."""
    items: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    index = 0
    while min(map(len, items.values())) < count:
        question, answer = task_item(index, seed=990)
        items["color" in question].append((f"Question: {question} Answer:", f" {answer}."))
        index += 1
    right = []
    for kind in (False, True):
        prompts, answers = zip(*items[kind][:count], strict=True)
        given = complete(model, prompts, tokenizer, seed=0, new_tokens=8, top_p=0.0)
        right.append(sum(text == answer for text, answer in zip(given, answers, strict=True)))
    return right[0], right[1]


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: int
) -> dict[str, float]:
    """The figures of the model card."""
    model.eval()
    test = stories("test", 256)
    upper = [text.upper() for text in test]
    prefixes = [" ".join(text.split()[:3]) for text in upper[:prompts]]
    shouted = sum(map(is_shouted, complete(model, prefixes, tokenizer, seed=42)))
    tokens = [sum(map(len, token_rows(texts, tokenizer))) - 2 * 256 for texts in (test, upper)]
    sums, colors = right_answers(model, tokenizer, prompts)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "pretrain_loss": mean_loss(model, stories("pretrain", 256, seed=990), tokenizer),
        "test_loss": mean_loss(model, test, tokenizer),
        "test_loss_upper": mean_loss(model, upper, tokenizer),
        "caps_completions": shouted,
        "caps_prompts": len(prefixes),
        "sum_answers": sums,
        "color_answers": colors,
        "task_questions": prompts,
        "tokens_per_word": tokens[0] / sum(len(text.split()) for text in test),
        "tokens_per_story": tokens[0] / len(test),
        "upper_token_ratio": tokens[1] / tokens[0],
    }


def write_card(out: Path, figures: dict[str, float], steps: int, seed: int) -> None:
    """Fill the model card with the measured figures."""
    template = (Path(__file__).parent / "base_card.md").read_text(encoding="utf-8")
    values = {name: f"{v:.3f}" if isinstance(v, float) else f"{v:,}" for name, v in figures.items()}
    values |= {"steps": f"{steps:,}", "batch": str(BATCH), "seed": str(seed)}
    values["torch"] = str(torch.__version__).split("+")[0]
    for name, value in values.items():
        template = template.replace(f"<{name}>", value)
    (out / "README.md").write_text(template, encoding="utf-8")


def main() -> None:
    """Run the whole flow."""
    parser = argparse.ArgumentParser(description="Make the embedded base model again.")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=STEPS, help="batches of 32 texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=128, help="prefixes for the caps rate")
    parser.add_argument("--snapshot", type=Path, help="also save the half-trained model here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)

    texts = documents(options.steps * BATCH, options.seed)
    tokenizer = make_tokenizer(texts[:24_000])
    model = make_model()
    rows = token_rows(texts, tokenizer)
    print(f"{len(rows)} texts, {sum(map(len, rows))} tokens, {model.num_parameters()} parameters")
    if options.snapshot:
        tokenizer.save_pretrained(options.snapshot)
    snapshot = (2 * options.steps // 5, options.snapshot) if options.snapshot else None
    pretrain(model, rows, options.seed, snapshot)

    model.half().save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    shipped = LlamaForCausalLM.from_pretrained(options.out, dtype=torch.float32)  # fp16 rounding
    figures = measure(shipped, tokenizer, options.prompts)
    write_card(options.out, figures, options.steps, options.seed)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
