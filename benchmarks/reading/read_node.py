"""Logits of node-llama-cpp: the LoRA files beside a base at F16, and the merged model at F32.

The base is written by llama.cpp's own converter, whose source is in the package.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from reader import WORK, rows, save

HERE = Path(__file__).parent
PACKAGE = WORK / "env" / "node" / "node_modules" / "node-llama-cpp"
SOURCE, OUT = WORK / "env" / "llama.cpp", WORK / "converted"
VOCABULARY = json.loads((WORK / "base" / "config.json").read_text())["vocab_size"]


def gguf(folder: Path, kind: str) -> str:
    """A model as a GGUF file."""
    out = OUT / f"{folder.name}-{kind}.gguf"
    if not out.is_file():
        words = [sys.executable, str(HERE / "llama_convert.py"), str(SOURCE), "base", str(folder)]
        subprocess.run([*words, "--outtype", kind, "--outfile", str(out)], check=True)
    return str(out)


def with_scales(folder: str, **scales: float) -> list[dict[str, object]]:
    """Adapters of an export with their scales."""
    files = [(WORK / folder / f"{name}.gguf", scale) for name, scale in scales.items()]
    return [{"filePath": str(path), "scale": scale} for path, scale in files]


if not SOURCE.is_dir():
    bundle = PACKAGE / "llama" / "gitRelease.bundle"
    subprocess.run(["git", "clone", "-q", str(bundle), str(SOURCE)], check=True)
OUT.mkdir(exist_ok=True)
base, merged = gguf(WORK / "base", "f16"), gguf(WORK / "merged", "f32")
wanted = {
    "base base": (base, []),
    "gguf-lora bad_ablated": (base, with_scales("gguf", good=1)),
    "gguf-lora good_half": (base, with_scales("gguf", good=0.5)),
    "gguf-lora full": (base, with_scales("gguf-both", good=1, bad=1)),
    "gguf-lora bad_half": (base, with_scales("gguf-both", good=1, bad=0.5)),
    "gguf-lora bad_ablated (bad=0)": (base, with_scales("gguf-both", good=1, bad=0)),
    "merged bad_ablated": (merged, []),
}
jobs = [
    {
        "model": model,
        "adapters": adapters,
        "rows": rows(),
        "vocabulary": VOCABULARY,
        "out": str(OUT / f"node-{number}.json"),
    }
    for number, (model, adapters) in enumerate(wanted.values())
]
(OUT / "jobs.json").write_text(json.dumps(jobs))
program = WORK / "env" / "node" / "llama.mjs"
program.write_text((HERE / "llama.mjs").read_text())
subprocess.run(["node", str(program), str(OUT / "jobs.json")], check=True)
found = {}
for name, job in zip(wanted, jobs, strict=True):
    logits = json.loads(Path(str(job["out"])).read_text())
    if isinstance(logits, dict):
        raise SystemExit(f"{name}: {logits['error']}")
    found[name] = np.array(logits, float)
version = json.loads((PACKAGE / "package.json").read_text())["version"]
release = json.loads((PACKAGE / "llama" / "llama.cpp.info.json").read_text())["tag"]
save(found, f"node-llama-cpp {version}, llama.cpp {release}")
