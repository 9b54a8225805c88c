"""Exports in both formats on models of three families, and on the embedded one: their proofs.

    python benchmarks/exports.py --runs runs/exports

A run of a few steps on each tiny model, and a demo-sized one on the embedded model. Every proof
is written to `benchmarks/results/exports/<family>-<format>.json`, and a table is printed. About
three minutes on two cores.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
)
from transformers.utils import logging

from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.export.export_run import ExportRequest, export_run
from gradroute.export.staging import PROOF
from gradroute.models.base import embedded_model
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder
from gradroute.system.files import write_json

RESULTS = Path(__file__).parent / "results" / "exports"
FORMATS = ("peft", "merged")

_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
_GEMMA = {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 4}
FAMILIES: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SIZES, **_HEADS, **_TOKENS),
    "gpt2": lambda: GPT2Config(
        n_embd=16, n_layer=2, n_head=4, **_TOKENS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ),
    "gemma3": lambda: Gemma3TextConfig(**_SIZES, **_HEADS, **_GEMMA, sliding_window=8, **_TOKENS),
}
"""Name -> the configuration of a tiny model. GPT-2 stores its weights transposed, Gemma 3 ties its
output head to the embeddings."""
_TOKENS = {
    "vocab_size": 2048,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHORT = (
    "train.max_steps=6",
    "train.warmup_steps=0",
    "train.batch_size=4",
    "train.learning_rate=0.01",
    "data.train_examples=60",
    "data.max_length=32",
    "data.behavior_fraction=0.5",
    "adapters.good.rank=4",
    "adapters.bad.rank=4",
    "evaluate.prompts=6",
    "evaluate.max_new_tokens=8",
    "evaluate.held_out=6",
)


def save_family(folder: Path, family: str) -> Path:
    """A tiny model of a family, with the embedded model's tokenizer, in Hugging Face format."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(embedded_model()) / name, folder / name)
    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(FAMILIES[family]())
    model.save_pretrained(folder)
    return folder


def short_run(root: Path, family: str, *overrides: str) -> RunFolder:
    """A run of six steps on a tiny model, made where it is not there."""
    base = root / "bases" / family
    if not base.is_dir():
        save_family(base, family)
    config = load_config(
        find_config("caps"), [*SHORT, f"model={base}", f"run_name={family}", *overrides]
    )
    return train_run(config, root, if_exists="resume", bar=False)


def embedded_run(root: Path) -> RunFolder:
    """The demo's routed run of half the labels, made where it is not there."""
    config: RunConfig = load_config(find_config("caps"), ["run_name=embedded"])
    return train_run(config, root, if_exists="resume", bar=False)


def main() -> None:
    """Train, export and keep the proofs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs and exports")
    root = parser.parse_args().runs
    runs = {family: short_run(root, family) for family in FAMILIES}
    runs["embedded"] = embedded_run(root)
    for name, folder in runs.items():
        for form in FORMATS:
            out = root / "exports" / f"{name}-{form}"
            shutil.rmtree(out, ignore_errors=True)
            export_run(folder, ExportRequest(("good",), form, out), repo=None, public=False)
            proof = json.loads((out / PROOF).read_text())
            write_json(RESULTS / f"{name}-{form}.json", proof)
    print("| model | format | logits, relative | weights, ulps | with bad | behavior | bytes |")
    print("|---|---|---|---|---|---|---|")
    for path in sorted(RESULTS.glob("*.json")):
        print(_line(path))


def _line(path: Path) -> str:
    """One line of the table."""
    proof = json.loads(path.read_text())
    found = {check["name"]: check for check in proof["checks"]}
    name, _, form = path.stem.rpartition("-")
    rates = found["behavior"]["prompts"].values()
    equal = sum(rate["equal_completions"] for rate in rates)
    cells = [
        name,
        form,
        f"{found['logits']['relative']:.1e}",
        f"{found['weights']['ulps']:.2f}",
        f"{found['left_out']['difference'] / found['logits']['largest_logit']:.1e}",
        f"{equal} of {sum(rate['n'] for rate in rates)} completions equal",
        f"{len(found['bytes']['found'])} of {found['files']['files']} files",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
