"""What other tools compute from the exports of a run, beside what the run itself computes.

    python benchmarks/readers.py --work runs/readers
    python benchmarks/readers.py --work runs/readers --tools vllm sglang --again

A short run on the embedded model, whose adapter `good` has rsLoRA, so that its scale is one that
alpha / rank has to be made for, is exported in every form. Each tool is installed at a pinned
version into a folder of its own (from PyPI or npm; torch and transformers are those that this runs
on, unless the tool has its own), reads an export in a process of its own
(`benchmarks/reading/read_TOOL.py`), and what it computes is held against the run's logits, or
against its updates where only the tool's loading code runs. One file per tool in
`benchmarks/results/readers/`; what is there is not made again. About ten minutes, and 2 GB.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradroute.config.run_config import find_config, load_config
from gradroute.evaluate.geometry import saved_factors
from gradroute.evaluate.modes import read_modes
from gradroute.export.export_run import ExportRequest, export_run
from gradroute.export.merging import exact_update
from gradroute.export.parity import continued, logits_of
from gradroute.models.base import embedded_model
from gradroute.models.checkpoint import Checkpoint, adapter_tensors
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.routing.adapters import ablated
from gradroute.run import train_run
from gradroute.runs.folder import RunFolder
from gradroute.system.files import write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "readers"
TOOLS: Mapping[str, Sequence[str]] = {
    "transformers4": (
        "transformers==4.57.6",
        "peft==0.18.1",
        "huggingface-hub==0.36.0",
        "tokenizers==0.22.1",
    ),
    "ctranslate2": ("ctranslate2==4.8.5",),
    "mlx": ("mlx==0.32.4", "mlx-cpu==0.32.4", "mlx-lm==0.32.2"),
    "onnx": (
        "onnxruntime-genai==0.18.0",
        "onnxruntime==1.32.0",
        "onnx==1.23.2",
        "onnx-ir==1.1.0",
        "ml-dtypes==0.6.0",
        "flatbuffers==25.12.19",
        "protobuf==7.36.2",
    ),
    "openvino": (
        "openvino==2026.4.1",
        "openvino-genai==2026.4.1.0",
        "openvino-tokenizers==2026.4.1.0",
        "optimum==2.3.0",
        "optimum-intel==2.2.0",
        "transformers==4.57.6",
        "huggingface-hub==0.36.0",
        "tokenizers==0.22.1",
        "datasets==4.4.1",
        "nncf==3.4.0",
        "jstyleson==0.0.2",
        "natsort==8.4.0",
        "rich==15.0.0",
        "networkx==3.6.1",
        "ninja==1.13.2",
        "tabulate==0.10.0",
        "pymoo==0.6.2",
    ),
    "node": (),
    "mergekit": ("mergekit==0.1.5", "immutables==0.21"),
    "vllm": ("vllm==0.33.0",),
    "sglang": ("sglang==0.5.23",),
    "lm_eval": (),
}
"""Tool -> what is installed for it, without what that requires."""
NODE = "node-llama-cpp@3.22.1"
MODES = {
    "base": "base",
    "bad_ablated": "bad_ablated",
    "full": "full",
    "good_half": "good=0.5,bad=0",
    "bad_half": "good=1,bad=0.5",
}
SETTINGS = (
    "run_name=readers",
    "train.max_steps=60",
    "train.warmup_steps=6",
    "train.learning_rate=2e-3",
    "data.train_examples=600",
    "adapters.good.rank=12",
    "adapters.good.alpha=7",
    "adapters.good.rslora=true",
    "evaluate.prompts=12",
    "evaluate.held_out=12",
)


def prepared(work: Path) -> tuple[RunFolder, Checkpoint]:
    """The run, its exports, the rows and what the run computes on them."""
    config = load_config(find_config("caps"), list(SETTINGS))
    folder = train_run(config, work / "runs", if_exists="resume", bar=False)
    checkpoint = finished_checkpoint(folder, config.train.max_steps)
    wanted = {
        "peft": ("peft", ("good",)),
        "merged": ("merged", ("good",)),
        "gguf": ("gguf-lora", None),
        "gguf-both": ("gguf-lora", ("good", "bad")),
    }
    for name, (form, keep) in wanted.items():
        if not (work / name).is_dir():
            request = ExportRequest(keep, form, work / name, dtype="float32", evaluate=False)
            export_run(folder, request, repo=None, public=False)
    if not (work / "base").is_dir():
        shutil.copytree(embedded_model(), work / "base")
    if not (work / "expected.safetensors").is_file():
        base, model = restore(config, checkpoint)
        generator = torch.Generator().manual_seed(0)
        made = torch.randint(3, 2048, (4, 24), generator=generator)
        words = "Once there was a small fox who wanted to find out what the old owl knew about"
        text = base.tokenizer.encode(words * 3)[:24]
        rows = torch.cat([made, torch.tensor([text])])
        expected: dict[str, Tensor] = {}
        for name, mode in MODES.items():
            (one,) = read_modes([mode], (), tuple(config.adapters))
            with ablated(model, one):
                expected[name] = logits_of(model, rows).contiguous()
                longer = continued(model.get_base_model(), rows)[0]  # pyright: ignore
            expected[f"tokens {name}"] = longer[:, rows.shape[1] :].contiguous()
        write_json(work / "rows.json", rows.tolist())
        save_file(expected, work / "expected.safetensors")
    return folder, checkpoint


def installed(work: Path, tool: str) -> Path:
    """Where a tool's packages are, put there once."""
    place = work / "env" / tool
    done = work / "env" / f"{tool}.json"
    if done.is_file() and json.loads(done.read_text()) == list(TOOLS[tool]):
        return place
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    if tool == "node":
        words = ["npm", "install", "--ignore-scripts", "--prefix", str(place), NODE]
        subprocess.run(words, check=True)
        for large in (place / "node_modules" / "@node-llama-cpp").glob("*-x64-*"):
            shutil.rmtree(large)  # builds for graphics cards
    elif tool == "vllm":  # hundreds of megabytes of kernels, none of which are run here
        subprocess.run([*pip, "download", "--no-deps", "-d", place, *TOOLS[tool]], check=True)
        for wheel in place.glob("*.whl"):
            with zipfile.ZipFile(wheel) as file:
                own = [name for name in file.namelist() if name.startswith("vllm/lora/")]
                file.extractall(place, own)
            wheel.unlink()
    elif TOOLS[tool]:
        subprocess.run([*pip, "install", "--no-deps", "--target", place, *TOOLS[tool]], check=True)
    write_json(done, list(TOOLS[tool]))
    return place


def read_by(work: Path, tool: str) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """What a tool computes, with its version and a note; or why it does not."""
    found = work / "found" / f"{tool}.safetensors"
    found.parent.mkdir(exist_ok=True)
    (work / "converted").mkdir(exist_ok=True)
    program = HERE / "reading" / f"read_{tool}.py"
    path = os.pathsep.join([str(installed(work, tool)), os.environ.get("PYTHONPATH", "")])
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    ended = subprocess.run(
        [sys.executable, str(program), str(work), str(found)],
        env={**os.environ, **quiet, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if ended.returncode:
        lines = [line for line in ended.stderr.strip().split("\n") if line.strip()]
        return {}, {}, lines[-1][:300] if lines else f"exit code {ended.returncode}"
    with safe_open(found, framework="pt") as file:
        facts = dict(file.metadata() or {})
    return load_file(found), facts, ""


def compared(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], checkpoint: Checkpoint
) -> dict[str, dict[str, float | int]]:
    """By export and mode the largest differences of a tool from the run."""
    told: dict[str, dict[str, float | int]] = {}
    for name, values in found.items():
        form, _, mode = name.partition(" ")
        mode = mode.partition(" (")[0]
        if form == "update":
            continue
        if form == "tokens":
            right = expected[f"tokens {name.rpartition(' ')[2]}"]
            told[name] = {"tokens": right.numel(), "equal": int((values == right).sum())}
            continue
        own, other = (torch.log_softmax(v.double(), -1) for v in (expected[mode], values))
        top = own.topk(2).values
        decided = top[..., 0] - top[..., 1] > 2 * (own - other).abs().amax(-1)
        wrong = (own.argmax(-1) != other.argmax(-1)) & decided
        told[name] = {
            "probability": (own.exp() - other.exp()).abs().max().item(),
            "log_probability": (own - other).abs().max().item(),
            "positions": own[..., 0].numel(),
            "decided_tokens_differ": int(wrong.sum()),
        }
    updates = {name.partition(" ")[2]: v for name, v in found.items() if name.startswith("update")}
    if updates:
        tensors, factors = adapter_tensors(checkpoint, "good"), saved_factors(checkpoint, "good")
        worst = 0.0
        for module, own in factors.items():
            exact = exact_update(tensors, module, own.scale)
            share = (updates[module].double() - exact).abs().max() / exact.abs().max()
            worst = max(worst, share.item())
        told["peft updates"] = {
            "share_of_the_largest": worst,
            "modules": len(updates),
            "modules_expected": len(factors),
        }
    return told


def main() -> None:
    """Export, let each tool read, and keep how far it is off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--work", type=Path, required=True, help="folder of run, exports and tools")
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--again", action="store_true", help="also the tools that have a result")
    options = parser.parse_args()
    work = options.work.resolve()
    _, checkpoint = prepared(work)
    expected = load_file(work / "expected.safetensors")
    for tool in options.tools:
        out = RESULTS / f"{tool}.json"
        if out.is_file() and not options.again:
            continue
        try:
            found, facts, reason = read_by(work, tool)
        except (subprocess.SubprocessError, OSError) as error:
            found, facts, reason = {}, {}, str(error).replace(str(work), "WORK")[:300]
        result = {
            "tool": tool,
            "version": facts.get("version") or ", ".join(TOOLS[tool]),
            "note": facts.get("note", "").replace(str(work), "WORK"),
            "failed": reason.replace(str(work), "WORK"),
            "differences": compared(found, expected, checkpoint),
        }
        write_json(out, result)
        print(_lines(result), flush=True)
    print("| tool | export, mode | largest difference of a probability | of a log-probability |")
    print("|---|---|---|---|")
    for path in sorted(RESULTS.glob("*.json")):
        if "tool" in (result := json.loads(path.read_text())):
            print(_lines(result))


def _lines(result: Mapping) -> str:
    """A tool's lines of the table."""
    name = result["version"] or result["tool"]
    if result["failed"]:
        return f"| {name} | failed: {result['failed']} | | |"
    lines = []
    for what, one in result["differences"].items():
        if "probability" in one:
            cells = f"{one['probability']:.1e} | {one['log_probability']:.1e}"
        elif "tokens" in one:
            cells = f"{one['equal']} of {one['tokens']} greedy tokens equal |"
        else:
            cells = f"updates: {one['share_of_the_largest']:.1e} of the largest | "
        lines.append(f"| {name} | {what} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
