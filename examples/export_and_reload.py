"""Export a run without *bad*, and reload the result in plain PEFT, without gradroute.

The export is refused if any check of its proof fails: the reloaded files compute what the ablated
model computes, and hold no 32 bytes of *bad*.

    python examples/own_data.py        # trains own_data/runs/mine
    python examples/export_and_reload.py [RUN] [OUT]
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradroute import embedded_model
from gradroute.export.export_run import ExportRequest, export_run
from gradroute.runs.folder import RunFolder


def main(run: Path, out: Path, *, evaluate: bool = True) -> str:
    """Export `good` alone; return what the reloaded model writes after "One day"."""
    wanted = ExportRequest(keep=("good",), form="peft", out=out, dtype=None, evaluate=evaluate)
    export_run(RunFolder(run), wanted, repo=None, public=False)
    return plain_peft(out)


def plain_peft(adapter: Path) -> str:
    """What anybody does with the folder: transformers and PEFT, nothing else."""
    base = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype="float32")  # your base
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    model = PeftModel.from_pretrained(base, adapter).eval()
    inputs = tokenizer("One day", return_tensors="pt")
    with torch.no_grad():
        written = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(written[0], skip_special_tokens=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    place = Path(given[1] if len(given) > 1 else "shipped")
    print(main(Path(given[0] if given else "own_data/runs/mine"), place))
    proof = json.loads((place / "proof.json").read_text(encoding="utf-8"))
    print(f"proof.json has {', '.join(proof)}")
