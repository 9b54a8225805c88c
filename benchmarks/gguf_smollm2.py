"""A run on SmolLM2-135M in llama.cpp: next-token probabilities beside the run's own.

    python benchmarks/gguf_smollm2.py --run runs/smollm2/smollm2-0 --work runs/readers

Takes a run of `smollm2.py` or like it, whose base is a GGUF file in 4 bits, and the folder that
`readers.py` has filled. The adapters are exported for llama.cpp and run beside two bases: the
unpacked weights, written at F16 by llama.cpp's converter, held against the run on weights that are
rounded to F16 as well and against the run as it is; and the file in 4 bits, whose products
llama.cpp takes in 8 bits. Some minutes.
"""

import argparse
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from gguf_families import converted
from peft import PeftModel
from torch import Tensor

from gradroute.config.run_config import load_config
from gradroute.evaluate.modes import read_modes
from gradroute.export.export_run import ExportRequest, export_run
from gradroute.export.parity import logits_of
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.routing.adapters import ablated
from gradroute.runs.folder import RunFolder
from gradroute.system.files import write_json

HERE = Path(__file__).parent
MODES = {
    "base": {"good": 0.0, "bad": 0.0},
    "bad_ablated": {"good": 1.0, "bad": 0.0},
    "bad_half": {"good": 1.0, "bad": 0.5},
    "full": {"good": 1.0, "bad": 1.0},
}
TEXTS = (
    "One day a little girl went to the market with her mother because she wanted to",
    "The capital of France is Paris, and the capital of Italy is Rome, which has",
)
LENGTH = 14


def probabilities(model: PeftModel, rows: Tensor, adapters: Sequence[str]) -> dict[str, Tensor]:
    """What the run computes under each mode, [rows, positions, tokens]."""
    found = {}
    for name, scales in MODES.items():
        told = ",".join(f"{adapter}={scale}" for adapter, scale in scales.items())
        (mode,) = read_modes([told], (), adapters)
        with ablated(model, mode):
            found[name] = logits_of(model, rows).double().softmax(-1)
    return found


def run_with_llama(
    place: Path, node: Path, bases: dict[str, Path], rows: torch.Tensor, vocabulary: int
) -> dict[tuple[str, str], torch.Tensor]:
    """What llama.cpp computes on each base at each pair of scales.

    Args:
        place: Folder with the exported adapters; jobs and answers go there.
        node: Folder of the program that runs llama.cpp.
        bases: Name -> GGUF file.
        rows: Token ids [n, t].
        vocabulary: Number of tokens v.

    Returns:
        (base, pair of scales) -> next-token probabilities [n, t, v] in float64.
    """
    jobs = {
        (kind, name): {
            "model": str(path.resolve()),
            "rows": rows.tolist(),
            "vocabulary": vocabulary,
            "adapters": [
                {"filePath": str(place / "lora" / f"{adapter}.gguf"), "scale": scale}
                for adapter, scale in scales.items()
                if scale
            ],
            "out": str(place / "found.json") + f".{kind[0]}.{name}",
        }
        for kind, path in bases.items()
        for name, scales in MODES.items()
    }
    (place / "jobs.json").write_text(json.dumps(list(jobs.values())))
    subprocess.run(["node", str(node / "llama.mjs"), str(place / "jobs.json")], check=True)
    return {
        key: torch.tensor(json.loads(Path(str(job["out"])).read_text())).double().softmax(-1)
        for key, job in jobs.items()
    }


def main() -> None:
    """Export, run both bases, and keep the largest differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--run", type=Path, required=True, help="a run on SmolLM2's GGUF file")
    parser.add_argument("--work", type=Path, required=True, help="folder that readers.py filled")
    options = parser.parse_args()
    place = options.work.resolve() / "smollm2"
    place.mkdir(exist_ok=True)
    folder = RunFolder(options.run)
    config = load_config(folder.config)
    if not (place / "lora").is_dir():
        request = ExportRequest(("good", "bad"), "gguf-lora", place / "lora", evaluate=False)
        export_run(folder, request, repo=None, public=False)
    base, model = restore(config, finished_checkpoint(folder, config.train.max_steps))
    rows = torch.tensor([base.tokenizer.encode(text)[:LENGTH] for text in TEXTS])
    expected = {"as it is": probabilities(model, rows, tuple(config.adapters))}
    unpacked = place / "unpacked-f16.gguf"
    if not unpacked.is_file():
        model.unload().save_pretrained(place / "unpacked")  # pyright: ignore
        base.tokenizer.save_pretrained(place / "unpacked")
        more = ("--outtype", "f16", "--outfile", str(unpacked))
        if reason := converted(options.work.resolve(), "base", str(place / "unpacked"), *more):
            raise SystemExit(reason)
        shutil.rmtree(place / "unpacked")
        base, model = restore(config, finished_checkpoint(folder, config.train.max_steps))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and ".lora_" not in name:
                weight.data = weight.half().float()
    expected["F16"] = probabilities(model, rows, tuple(config.adapters))
    assert config.gguf_file is not None
    bases = {"F16": unpacked, "as it is": Path(config.model) / config.gguf_file}
    vocabulary = expected["F16"]["base"].shape[-1]
    computed = run_with_llama(place, options.work / "env" / "node", bases, rows, vocabulary)
    found: dict[str, dict[str, float]] = {}
    for (kind, name), own in computed.items():
        for reference in expected:
            off = (own - expected[reference][name]).abs().max().item()
            found.setdefault(f"base {kind}, run on {reference}", {})[name] = off
    both = expected["as it is"]
    apart = (both["full"] - both["base"]).abs().max().item()
    result = {"model": config.gguf_file, "differences": found, "full_from_base": apart}
    write_json(HERE / "results" / "readers" / "gguf_smollm2.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
