"""The terminal text of `gradroute validate`."""

from collections.abc import Iterator, Mapping
from typing import Any

from gradroute.preflight.validation import Validation
from gradroute.system.terminal import printable, safe_text

_NAME = 12  # columns of a block's name


def text_of(found: Validation) -> str:
    """Blocks of lines, the name of each in front; a part that could not be looked at has none."""
    blocks = (
        ("run", _run),
        ("place", _place),
        ("data", _data),
        ("simpler", _simpler),
        ("base", _base),
        ("adapters", _adapters),
        ("model", _model),
        ("tokens", _tokens),
        ("gradients", _gradients),
        ("estimate", _estimate),
        ("ranks", _ranks),
    )
    lines: list[str] = []
    for name, lines_of in blocks:
        if name not in found.facts:
            continue
        for at, line in enumerate(lines_of(found.facts[name])):
            lines.append(f"{'' if at else name:<{_NAME}}{printable(line)}".rstrip())
    return safe_text("\n".join(lines))


def _run(facts: Mapping[str, Any]) -> Iterator[str]:
    controls = f", and its controls {', '.join(facts['controls'])}" if facts["controls"] else ""
    yield f"{facts['name']}, seed {facts['seed']}{controls}"


def _place(facts: Mapping[str, Any]) -> Iterator[str]:
    done = facts["steps_done"]
    state = "nothing is written yet"
    if done:
        state = f"exists already: the run continues after step {done}"
    free = "" if facts["free"] is None else f", {size(facts['free'])} free"
    yield f"{facts['folder']}/ ({state}{free})"


def _data(facts: Mapping[str, Any]) -> Iterator[str]:
    held = facts["held_out"]
    yield (
        f"{facts['identity']}: {facts['train']:,} examples to train on, held out "
        f"{held['normal']:,} normal and {held['behavior']:,} with the behavior"
    )
    if groups := facts["groups"]:
        yield (
            f"groups that share a prompt, a text or data.group: {groups['groups']:,} of "
            f"{groups['examples']:,} rows; the biggest has {groups['biggest']:,}"
        )
    yield "labels: " + ", ".join(f"{n:,} {label}" for label, n in facts["labels"].items())
    for true, label, count in facts["true_by_label"]:
        yield f"  truly {true}, labeled {label}: {count:,}"
    if facts["true_labels_known"]:
        yield (
            f"the label bad: precision {_percent(facts['precision'])}, recall "
            f"{_percent(facts['recall'])}"
        )
    else:
        yield "no true labels: the quality of the labels is unknown"
    yield from facts["notes"]


def _simpler(facts: Mapping[str, Any]) -> Iterator[str]:
    yield from facts["notes"]


def _base(facts: Mapping[str, Any]) -> Iterator[str]:
    tokenizer = facts["tokenizer"]
    yield f"{facts['name']} ({facts['kind']}): {facts['held']}"
    yield (
        f"tokenizer: {tokenizer['tokens']:,} tokens, {facts['vocabulary']:,} embeddings, begins "
        f"with {tokenizer['begins'] or 'nothing'}, ends with {tokenizer['ends'] or 'nothing'}"
    )


def _adapters(facts: Mapping[str, Any]) -> Iterator[str]:
    each = ", ".join(f"{name} {count:,} weights" for name, count in facts["weights"].items())
    yield f"{each}; {facts['covered']}"


def _model(facts: Mapping[str, Any]) -> Iterator[str]:
    yield from facts["notes"]
    if facts["alone"]:
        yield f"an evaluation generates one row at a time: {facts['alone']}"


def _tokens(facts: Mapping[str, Any]) -> Iterator[str]:
    total = sum(facts["targets"].values())
    shares = ", ".join(
        f"{label} {count:,} ({_percent(count / total)})"
        for label, count in facts["targets"].items()
    )
    yield f"trained on per epoch: {total:,}: {shares}"
    yield (
        f"an example has {facts['median_length']} (median) to {facts['longest']} tokens; "
        f"{facts['examples']:,} examples, {facts['epochs']:.2g} epochs"
    )
    yield from facts["notes"]


def _gradients(facts: Mapping[str, Any]) -> Iterator[str]:
    for label, seen in facts.items():
        norms = ", ".join(
            f"{adapter} {norm:.3g}" if norm else f"{adapter} none"
            for adapter, norm in seen["norms"].items()
        )
        yield f"{label}: loss {seen['loss']:.3f}; gradient norm {norms}: as the table says"


def _ranks(facts: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{facts['ranks']} ranks: each takes {facts['examples']} examples of a step, "
        f"{facts['at_once']} at a time, {facts['step_seconds']:.2g} s without communication, and "
        f"gives {size(facts['sent'])} of gradients to a sum"
    )
    for strategy, memory in facts["memory"].items():
        if strategy in facts["refused"]:
            yield f"{strategy}: {facts['refused'][strategy]}"
        elif memory is not None:
            yield f"{strategy}: about {size(memory)} of memory a rank in training; calculated"


def _estimate(facts: Mapping[str, Any]) -> Iterator[str]:
    runs = "" if facts["runs"] == 1 else f" for {facts['runs']} runs"
    took = duration(facts["hours"] * 3600)
    yield (
        f"time about {took}{runs}: {facts['step_seconds']:.2g} s a step, the median of the first "
        f"{facts['steps']}, measured; without evaluation"
    )
    if facts["memory"] is None:
        yield (
            "memory is not estimated: this system does not tell how much a process has taken "
            "(Python's module resource is missing)"
        )
    else:
        yield (
            f"memory {size(facts['memory'])} of the {facts['of_memory']} in training: the peak "
            f"measured here, also with the longest examples"
        )
    yield (
        f"disk at most {size(facts['disk'])}{runs}: checkpoints, metrics, evaluation; calculated"
    )
    if facts["states"]:
        yield f"including {size(facts['states'])} of hidden states that are computed once"
    if facts["runs"] > 1 and facts["shared"]:
        yield (
            f"besides, about {size(facts['shared'])} of hidden states that the runs share, as "
            "far as there is room; `gradroute cache` lists and frees them"
        )
    if facts["smaller"]:
        yield (
            f"only {facts['micro_batch']} examples at a time fit into memory; training computes "
            f"the same step in more passes"
        )


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.3g} %"
