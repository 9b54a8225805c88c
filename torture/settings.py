"""Every setting is changed once between a run and its resume: refused with its name, or recorded.

The keys come from the configuration itself, so that a new one is covered, or missed loudly. So are
the files that a run stands on. Then each change is made again with `--override`, and goes on.
"""

import io
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gradroute.cli.main import main
from gradroute.config.run_config import load_config
from gradroute.system.files import read_json, read_lines, write_json, write_lines
from torture.runs import NAME, STEPS, Ground, lay, sha256

# Another value for every key, as a user types it. `{folder}` is that of the ground.
CHANGED: Mapping[str, str] = {
    "seed": "7",
    "model": "{folder}/other-base",
    "gguf_file": "other.gguf",
    "quantize": "8bit",
    "start_adapter": "{folder}/adapter",
    "behavior": "regex:[A-Z]{{3}}",
    "routing": "exclusive",
    "targets": "[q_proj, v_proj]",
    "layers": "last-half",
    "adapters.good.rank": "2",
    "adapters.good.alpha": "5",
    "adapters.good.dropout": "0.2",
    "adapters.good.learning_rate": "0.02",
    "adapters.good.weight_decay": "0.5",
    "adapters.good.clip": "0.5",
    "adapters.good.rslora": "true",
    "adapters.good.start": "{folder}/adapter",
    "adapters.bad.rank": "4",
    "adapters.bad.alpha": "5",
    "adapters.bad.dropout": "0.2",
    "adapters.bad.learning_rate": "0.02",
    "adapters.bad.weight_decay": "0.5",
    "adapters.bad.clip": "null",
    "adapters.bad.rslora": "true",
    "adapters.bad.start": "{folder}/adapter",
    "data.path": "{folder}/other.jsonl",
    "data.eval_path": "{folder}/held-out.jsonl",
    "data.eval_fraction": "0.3",
    "data.split": "validation",
    "data.eval_split": "test",
    "data.revision": "main",
    "data.columns": "{{text: text}}",
    "data.label_map": "{{good: good}}",
    "data.template": "none",
    "data.null_fraction": "0.5",
    "data.found": "{folder}/found.jsonl",
    "data.on_bad_row": "skip",
    "data.group": "label",
    "data.span_unit": "utf16",
    "data.on_conflict": "unlabeled",
    "data.train_examples": "50",
    "data.max_length": "16",
    "data.behavior_fraction": "0.5",
    "data.labeled_fraction": "0.7",
    "data.good_labeled_fraction": "0.2",
    "data.false_positive_rate": "0.1",
    "data.label_seed": "5",
    "data.front_load": "0.5",
    "data.relabel": "random",
    "data.drop": "true_bad",
    "data.inoculation": "all",
    "data.inoculation_text": "Shout.",
    "train.max_steps": "26",
    "train.learning_rate": "0.02",
    "train.batch_size": "2",
    "train.gradient_accumulation": "3",
    "train.warmup_steps": "2",
    "train.save_every": "5",
    "train.loss_mean": "example",
    "train.packing": "true",
    "train.reuse_frozen": "true",
    "train.reuse_gib": "2",
    "train.length_window": "4",
    "train.low_rank_dtype": "bf16",
    "train.parallel": "ddp",
    "train.report_to": "tensorboard",
    "train.kl_good": "0.5",
    "train.teacher": "{folder}/other@bad_ablated",
    "train.log_gradients_every": "5",
    "train.measure_every": "23",
    "train.measure_prompts": "1",
    "evaluate.modes": "[full, base]",
    "evaluate.prompts": "2",
    "evaluate.prefix_words": "2",
    "evaluate.bos_samples": "7",
    "evaluate.max_new_tokens": "3",
    "evaluate.temperature": "0.5",
    "evaluate.top_p": "0.5",
    "evaluate.seed": "1",
    "evaluate.held_out": "4",
    "evaluate.batch_rows": "7",
    "evaluate.score_thoughts": "true",
    "evaluate.elicitation": "true",
    "controls": "[none]",
    "control": "none",
    "control_of": "y",
}
# What is done to the run, rather than to its config: the name of another run.
ELSEWHERE = ("run_name",)
FREE = ("evaluate.", "controls", "train.parallel", "train.report_to", "train.reuse_gib")
# What goes along with a key: another file is another data set, too.
ALONG = {
    "model": ("identity.base",),
    "data.path": ("identity.data",),
    "data.eval_path": ("identity.data",),
}


def trials(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Change every key and every file once; go on with `--override` for `count` of them, at most.

    Returns:
        Counts, and what failed as sentences: of `keys` and `facts` (files and versions) so many
        were `refused` with their name, `recorded`, or neither (`silent`); with `--override` so many
        `went_on` and were recorded, or were `unfit`: refused because the checkpoint does not fit.
    """
    draw = random.Random(f"settings {seed}")
    counts: Counter[str] = Counter()
    failures: list[str] = []
    ground = _ground(folder / "ground")
    half = _half(ground, folder)
    keys = [key for key in load_config(half.config).values_by_key if key not in ELSEWHERE]
    changes = [_Change(key, _typed(key, ground)) for key in keys if key in CHANGED]
    failures += [f"{key} has no other value in CHANGED." for key in keys if key not in CHANGED]
    facts = [_Change(f"identity.{name}", None, make) for name, make in _facts(ground).items()]
    for change in changes + facts:
        counts["keys" if change.typed else "facts"] += 1
        failures += _changed(half, change, (), counts)
    asked = changes + facts
    for change in draw.sample(asked, min(count, len(asked))):
        overrides = (change.key, *ALONG.get(change.key, ()))
        failures += _changed(half, change, overrides, counts)
    failures += _conditions(half)
    named = ("keys", "facts", "refused", "recorded", "silent", "went_on", "unfit")
    return {
        "trials": sum(counts[name] for name in ("refused", "recorded", "silent")),
        **{name: counts[name] for name in named},
        "failures": failures,
    }


@dataclass(frozen=True)
class _Half:
    """A run with its last steps to do, to be copied for every try."""

    config: Path
    run: Path
    tries: Path

    def copy(self) -> Path:
        """A fresh copy under its own name in the folder of the tries."""
        shutil.rmtree(self.tries, ignore_errors=True)
        shutil.copytree(self.run, self.tries / NAME)
        return self.tries / NAME

    def train(self, *words: str) -> tuple[int, str]:
        """The command line, and what it says."""
        said = io.StringIO()
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            code = main(["train", str(self.config), "--runs", str(self.tries), *words])
        return code, said.getvalue()


@dataclass(frozen=True)
class _Change:
    """A key with what is typed for it; or something done to files while it is in force."""

    key: str
    typed: str | None
    made: Callable[[Path], Any] | None = None

    @contextmanager
    def in_force(self, run: Path) -> Iterator[None]:
        """What the change does to files, undone afterwards."""
        if self.made is None:
            yield
            return
        with contextmanager(self.made)(run):
            yield


def _ground(folder: Path) -> Ground:
    """The usual one, with another base of the same shape, and more data files."""
    ground = lay(folder)
    shutil.copytree(ground.base, folder / "other-base")
    _move_a_weight(folder / "other-base")
    rows = ground.data.read_text(encoding="utf-8")
    (folder / "other.jsonl").write_text(rows.replace("the", "a"), encoding="utf-8")
    held_out = rows.replace('"s', '"h').replace("there", "here").replace("One", "Some")
    found = rows.splitlines()[0]
    labeled = {"text": json.loads(found)["text"], "label": "bad"}
    (folder / "found.jsonl").write_text(json.dumps(labeled) + "\n", encoding="utf-8")
    (folder / "held-out.jsonl").write_text(held_out.replace(" a ", " one "), encoding="utf-8")
    return ground


def _half(ground: Ground, folder: Path) -> _Half:
    """Train to the end, and lose the last checkpoint."""
    config = ground.config({}, "config")
    half = _Half(config, folder / "half" / NAME, folder / "tries")
    whole = _Half(config, half.run, folder / "half")
    code, said = whole.train()
    if code:
        raise RuntimeError(f"an undisturbed run ended with {code}: {said}")
    shutil.rmtree(half.run / "checkpoints" / f"step-{STEPS:06d}")
    return half


def _typed(key: str, ground: Ground) -> str:
    return f"{key}={CHANGED[key].format(folder=ground.folder)}"


def _changed(
    half: _Half, change: _Change, overrides: Sequence[str], counts: Counter[str]
) -> list[str]:
    """Change one thing, start again, and judge; what failed."""
    run = half.copy()
    words = [change.typed] if change.typed else []
    for key in overrides:
        words += ["--override", key]
    with change.in_force(run):
        before = _contents(run)
        code, said = half.train(*words)
        same = _contents(run) == before
    rows = list(read_lines(run / "sessions.jsonl"))
    last = rows[-1] if rows else {}
    recorded = code == 0 and change.key in last.get("changed", {})
    named = any(line.split()[:1] == [change.key] for line in said.splitlines())
    what = f"{' '.join(words)} {change.key}" if change.made else " ".join(words)
    if overrides:
        free = change.key.startswith(FREE)
        if recorded and (free or change.key in last["overridden"]):
            counts["went_on"] += 1
            return []
        if code in (2, 3, 4) and said.count("error: ") == 1 and not named:
            counts["unfit"] += 1
            return [] if _harmless(run, before) else [f"{what}: refused, but it changed the run."]
        return [f"{what}: ended with {code}: {said[-400:]}"]
    if code == 2 and named:
        counts["refused"] += 1
        return [] if same else [f"{what}: refused, but it changed the run folder."]
    if recorded and change.key.startswith(FREE):
        counts["recorded"] += 1
        return []
    counts["silent"] += 1
    return [f"{what}: ended with {code}, neither refused by name nor recorded: {said[-400:]}"]


def _contents(run: Path) -> dict[str, str]:
    return {str(p.relative_to(run)): sha256(p) for p in sorted(run.rglob("*")) if p.is_file()}


def _harmless(run: Path, before: Mapping[str, str]) -> bool:
    """Whether the checkpoints, the config and the metrics of a run are what they were."""
    kept = {k: v for k, v in before.items() if k.startswith(("checkpoints", "config", "metrics"))}
    return kept.items() <= _contents(run).items()


def _facts(ground: Ground) -> dict[str, Callable[[Path], Iterator[None]]]:
    """Name in `identity.*` -> a generator that changes it until it is resumed."""

    def data(run: Path) -> Iterator[None]:
        whole = ground.data.read_bytes()
        ground.data.write_bytes(whole.replace(b"the", b"The", 1))
        yield
        ground.data.write_bytes(whole)

    def base(run: Path) -> Iterator[None]:
        weights = ground.base / "model.safetensors"
        whole = weights.read_bytes()
        _move_a_weight(ground.base)
        yield
        weights.write_bytes(whole)

    def version(run: Path) -> Iterator[None]:
        manifest = read_json(run / "manifest.json")
        write_json(run / "manifest.json", {**manifest, "gradroute": "0.0.1"})
        yield

    return {"data": data, "base": base, "gradroute": version}


def _move_a_weight(base: Path) -> None:
    """One weight of the base becomes the next number above it."""
    path = base / "model.safetensors"
    tensors = load_file(path)
    first = tensors[min(tensors)].flatten()
    first[0] = torch.nextafter(first[0], torch.tensor(9.0))
    save_file(tensors, path, metadata={"format": "pt"})


def _conditions(half: _Half) -> list[str]:
    """Other threads and versions are said once, and recorded; the commit is recorded only."""
    run = half.copy()
    *earlier, last = read_lines(run / "sessions.jsonl")
    provenance = last["provenance"]
    provenance["commit"] = "0" * 40
    provenance["versions"]["torch"] = "2.0.0"
    provenance["hardware"]["threads"] = 99
    write_lines(run / "sessions.jsonl", [*earlier, last])
    code, said = half.train()
    if code or said.count("not be bit-identical") != 1:
        return [f"another torch and thread count: ended with {code}: {said[-400:]}"]
    *_, now = read_lines(run / "sessions.jsonl")
    changed = sorted(now["changed"])
    if changed != ["hardware.threads", "versions.torch"]:
        return [f"another torch and thread count: recorded is {', '.join(changed)}."]
    return []
