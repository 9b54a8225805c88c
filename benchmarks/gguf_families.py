"""LoRA files for llama.cpp on a tiny model of every family: names, order of rows, and numbers.

    python benchmarks/gguf_families.py --work runs/readers

Random adapters on all linear modules of a tiny model with random weights are written by
`export --format gguf-lora`'s writer and, from a PEFT folder, by llama.cpp's own converter; their
tensors are compared byte by byte. llama.cpp then runs the file on a base that its converter wrote
in float32. Where the base alone is already off (sliding windows of 8 tokens, shapes that it does
not take), the numbers say nothing of the adapter. Needs the folder that `readers.py` has filled.
Ten minutes.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from gguf import GGUFReader
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from gradroute.errors import ConfigError
from gradroute.evaluate.geometry import Factors
from gradroute.export.files import write_adapter
from gradroute.export.gguf_layout import ARCHITECTURES, architecture_of, places_of
from gradroute.export.gguf_lora import write_gguf
from gradroute.export.older_readers import with_older_names
from gradroute.export.rank_concat import OneAdapter
from gradroute.models.base import embedded_model
from gradroute.system.files import read_json, write_json

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from tiny_families import FAMILIES, FURTHER, tiny_family  # noqa: E402

RANK, ALPHA, VOCABULARY = 3, 4.5, 2048


def saved(folder: Path, family: str) -> PreTrainedModel:
    """A tiny model, written with the embedded model's tokenizer."""
    model = tiny_family(family, vocabulary=VOCABULARY, dtype=torch.float32)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    write_json(folder / "config.json", with_older_names(read_json(folder / "config.json")))
    shutil.copy(Path(embedded_model()) / "tokenizer.json", folder)
    settings = read_json(Path(embedded_model()) / "tokenizer_config.json")
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(folder / "tokenizer_config.json", settings)
    return model


def random_factors(model: PreTrainedModel, generator: torch.Generator) -> dict[str, Factors]:
    """An adapter on every linear module but the head and routers."""
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or name == "lm_head" or ".router" in name:
            continue
        outputs, inputs = module.weight.shape
        if isinstance(module, Conv1D):
            outputs, inputs = inputs, outputs
        down = 0.3 * torch.randn(RANK, inputs, generator=generator)
        up = 0.3 * torch.randn(outputs, RANK, generator=generator)
        found[name] = Factors(down, up, ALPHA / RANK)
    return found


def converted(work: Path, kind: str, *words: str) -> str:
    """Run a converter of llama.cpp; what it says where it fails."""
    source = work / "env" / "llama.cpp"
    program = [sys.executable, str(HERE / "reading" / "llama_convert.py"), str(source), kind]
    ended = subprocess.run([*program, *words], capture_output=True, text=True, check=False)
    return ended.stderr.strip().split("\n")[-1][:160] if ended.returncode else ""


def same_tensors(work: Path, folder: Path, model: PreTrainedModel, own: Mapping) -> str:
    """How the file differs from that of llama.cpp's converter."""
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in own)
    one = OneAdapter({m: (f.A, f.B) for m, f in own.items()}, RANK, ALPHA, transposed)
    (folder / "peft").mkdir()
    try:
        write_adapter(folder / "peft", one, model, base_name=None, dtype=torch.float32)
    except ConfigError as error:
        return f"no PEFT adapter: {error}"[:160]
    out = folder / "oracle.gguf"
    more = ("--base", str(folder), "--outtype", "f32", "--outfile", str(out))
    if reason := converted(work, "lora", str(folder / "peft"), *more):
        return f"the converter fails: {reason}"
    ours, theirs = (
        {t.name: (tuple(t.shape), t.data.tobytes()) for t in GGUFReader(path).tensors}
        for path in (folder / "good.gguf", out)
    )
    other = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    return f"{len(other)} of {len(ours)} tensors differ" if other else "equal"


def logits(model: PreTrainedModel, rows: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=rows).logits.double()


def off(work: Path, folder: Path, rows: Tensor, expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Largest difference of a probability in llama.cpp, of the base and with the adapter."""
    told = {}
    for name, adapters in (("base", []), ("adapter", [str(folder / "good.gguf")])):
        out = folder / f"{name}.json"
        job = {
            "model": str(folder / "base.gguf"),
            "adapters": [{"filePath": path, "scale": 1} for path in adapters],
            "rows": rows.tolist(),
            "vocabulary": VOCABULARY,
            "out": str(out),
        }
        (folder / "jobs.json").write_text(json.dumps([job]))
        program = work / "env" / "node" / "llama.mjs"
        words = ["node", str(program), str(folder / "jobs.json")]
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
        found = json.loads(out.read_text()) if out.is_file() else {"error": ended.stderr[-160:]}
        if isinstance(found, dict):
            told[name] = str(found["error"]).replace(str(work), "WORK").strip()
            continue
        both = (v.softmax(-1) for v in (expected[name], torch.tensor(found).double()))
        own, other = both
        told[name] = f"{(own - other).abs().max().item():.1e}"
    return told


def tried(work: Path, family: str) -> dict[str, str]:
    """One family: names and rows against the converter's, numbers against llama.cpp's."""
    folder = work / "families" / family
    model = saved(folder, family)
    generator = torch.Generator().manual_seed(1)
    own = random_factors(model, generator)
    places, architecture = places_of(model, own), architecture_of(model)
    path = folder / "good.gguf"
    write_gguf(path, own, places, architecture=architecture, dtype=torch.float32)
    told = {
        "model_type": model.config.model_type,
        "tensors": same_tensors(work, folder, model, own),
    }
    more = ("--outtype", "f32", "--outfile", str(folder / "base.gguf"))
    if reason := converted(work, "base", str(folder), *more):
        return {**told, "base": f"the converter fails: {reason}"}
    rows = torch.randint(3, VOCABULARY, (2, 20), generator=generator)
    expected = {"base": logits(model, rows)}
    for name, one in own.items():
        module = model.get_submodule(name)
        update = one.scale * one.B.double() @ one.A.double()
        update = update.T if isinstance(module, Conv1D) else update
        weight = module.weight
        assert isinstance(weight, Tensor)
        weight.data = (weight.double() + update).float()
    expected["adapter"] = logits(model, rows)
    return {**told, **off(work, folder, rows, expected)}


def main() -> None:
    """Try every family of the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--work", type=Path, required=True, help="folder that readers.py filled")
    work = parser.parse_args().work.resolve()
    found = {}
    for family in (*FAMILIES, *FURTHER):
        config = tiny_family(family, vocabulary=VOCABULARY).config
        if config.model_type in ARCHITECTURES:
            found[family] = tried(work, family)
            print(family, found[family], flush=True)
            write_json(HERE / "results" / "readers" / "gguf_families.json", found)


if __name__ == "__main__":
    main()
