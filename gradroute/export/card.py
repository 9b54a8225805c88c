"""The model card of an export: description, measurements, and limits of the claim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import ModelCard, ModelCardData

from gradroute import __version__
from gradroute.export.checks import Check
from gradroute.export.license import UNKNOWN
from gradroute.report.render.markdown import escaped

STATEMENT = (
    "This is a statement about files: they contain no byte of the left-out adapter. It is not a "
    "statement that the capability is gone. The base model and the kept adapters may still show "
    "the behavior, and fine-tuning may bring it back."
)
_TAGS = {"peft": ["lora"], "merged": [], "gguf-lora": ["lora", "gguf", "llama-cpp"]}
_KINDS = {
    "peft": "A LoRA adapter (PEFT)",
    "merged": "A causal language model",
    "gguf-lora": "LoRA adapters for llama.cpp (GGUF), each in a file of its own,",
}
_SERVER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class Subject:
    """What a card is about.

    Attributes:
        run: Name of the run.
        step: Of the checkpoint.
        form: `peft`, `merged` or `gguf-lora`.
        shipped: Adapters in it.
        left_out: Adapters that are not.
        base_name: Name of the base on the hub; None where it has none.
        base: What tells the base from others.
        licence: Of the base.
        rank: Of the adapter.
        scale: What its B A is multiplied by.
        warnings: What a reader must know first.
    """

    run: str
    step: int
    form: str
    shipped: Sequence[str]
    left_out: Sequence[str]
    base_name: str | None
    base: str
    license: str
    rank: int
    scale: float
    warnings: Sequence[str]


def export_card(
    subject: Subject,
    checks: Sequence[Check],
    evidence: str,
    *,
    adapters: Sequence[str],
    behaviors: Mapping[str, str],
    table: str | None,
) -> str:
    """The card of an export without a left-out adapter.

    Args:
        subject: What it is about.
        checks: Those that were made.
        evidence: Measurements, as Markdown.
        adapters: All adapters that were trained.
        behaviors: Label -> name of the behavior.
        table: Name of the routing table; None for one of the run's own.
    """
    left = ", ".join(subject.left_out) or "nothing"
    lines = [f"# {escaped(subject.run)}, exported without {escaped(left)}", ""]
    if not subject.left_out and len(subject.shipped) > 1:
        lines[0] = f"# AUDIT FILES of {escaped(subject.run)}: THEY HOLD THE UNWANTED BEHAVIOR"
    lines += [f"> **Warning.** {escaped(warning)}\n" for warning in subject.warnings]
    shown = "; ".join(f"`{_code(b)}` (label {label})" for label, b in behaviors.items())
    lines += [
        f"{_what(subject)} It was tuned with the adapters {', '.join(adapters)} "
        f"under the routing table `{_code(table or 'of its own')}`; kept: "
        f"{', '.join(subject.shipped)}; left out: {left}. Behavior: {shown}.",
        "",
        STATEMENT if subject.left_out else "No adapter is left out, so nothing is proved absent.",
        "",
        _use(subject),
        "",
        "## Measurements",
        "",
        evidence,
        "",
        "## Checks made during the export",
        "",
        *(f"- {escaped(check.text)}" for check in checks),
        "",
        "`proof.json` has every check with its numbers, also that of the bytes; `manifest.json` "
        "has the sha256 of every other file. See docs/howto/export.md of gradroute for what they "
        "prove and what they do not prove.",
    ]
    return _card(subject, lines)


def audit_card(subject: Subject, check: Check) -> str:
    """The card of an adapter that holds everything, for auditors."""
    lines = [
        f"# AUDIT ADAPTER of {escaped(subject.run)}: THIS HOLDS THE UNWANTED BEHAVIOR",
        "",
        f"> **Warning.** This adapter is the sum of {', '.join(subject.shipped)}: everything that "
        "was "
        f"trained, including the adapter that is meant to be thrown away. It is for auditors and "
        f"for comparisons. Do not ship it.",
        "",
        f"{_what(subject)} It computes what the run computes under `full`: {escaped(check.text)}.",
        "",
        _use(subject),
    ]
    return _card(subject, lines)


def _card(subject: Subject, lines: Sequence[str]) -> str:
    known = subject.license != UNKNOWN
    data = ModelCardData(
        license=subject.license if known else "other",
        license_name=None if known else "unknown-check-the-base-model",
        base_model=subject.base_name,
        library_name={"peft": "peft", "merged": "transformers"}.get(subject.form),
        pipeline_tag="text-generation",
        tags=["gradient-routing", "gradroute", *_TAGS[subject.form]],
    )
    # Not ModelCard.validate: that asks the hub.
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"))


def _what(subject: Subject) -> str:
    base = f"`{_code(subject.base_name)}`" if subject.base_name else "a base model without a name"
    license = (
        f"license {escaped(subject.license)}"
        if subject.license != UNKNOWN
        else "whose license is not known here: check it before you pass this on"
    )
    return (
        f"{_KINDS[subject.form]} made by gradroute {__version__} from step {subject.step} of the "
        f"run `{_code(subject.run)}` on {base} ({escaped(subject.base)}; {license})."
    )


def how_to_load(form: str, base_name: str | None, folder: str = "folder") -> str:
    """The call that loads an export, in one sentence.

    Args:
        form: `peft`, `merged` or `gguf-lora`.
        base_name: Name of the base on the hub; None where it has none.
        folder: What the export is called in the call.
    """
    by_itself = f"AutoModelForCausalLM.from_pretrained({folder})"
    if form == "merged":
        return f"It loads with `{by_itself}` of transformers."
    if form == "gguf-lora":
        return (
            "node-llama-cpp loads it beside a GGUF file of the same base: "
            "`model.createContext({lora: {adapters: [{filePath, scale: 1}]}})`."
        )
    call = f"It loads with `PeftModel.from_pretrained(base, {folder})` of PEFT, where `base` is"
    if base_name:
        loaded = f"AutoModelForCausalLM.from_pretrained('{_code(base_name)}')"
        return f"{call} `{loaded}` of transformers."
    return (
        f"{call} the loaded base model. It has no public name, so `base_model_name_or_path` is "
        f"null and no tool can find it automatically: `{by_itself}` would ask the hub for a "
        "repository called None."
    )


def _use(subject: Subject) -> str:
    call = how_to_load(subject.form, subject.base_name)
    if subject.form == "merged":
        return f"{call} Nothing else is needed."
    if subject.form == "gguf-lora":
        return (
            f"{call} Files: {', '.join(f'`{name}.gguf`' for name in subject.shipped)}, of rank "
            f"{subject.rank}. The scale that was trained with is in each file (adapter.lora.alpha, "
            "and what that cannot say in B), so that scale 1 is the trained adapter and 0 is "
            "none. The base must be converted from the same model by llama.cpp's own converter: "
            "rows of queries and keys are permuted as it permutes them."
        )
    least = next((rank for rank in _SERVER_RANKS if rank >= subject.rank), subject.rank)
    return (
        f"{call} It has rank {subject.rank}, no bias, no magnitudes and no modules of its own, and "
        f"B A is scaled by lora_alpha / r = {subject.scale:.7g} (a factor of rsLoRA is folded into "
        "lora_alpha). PEFT and what is made of it, mergekit and onnxruntime-genai's builder were "
        "tried with such adapters, and the loading code of vLLM, which needs `--enable-lora "
        f"--max-lora-rank {least}`, and of SGLang. openvino-genai reads the weights alone: give it "
        f"`AdapterConfig(adapter, {subject.scale:.7g})`."
    )


def _code(text: object) -> str:
    """A text that may stand between backticks."""
    return "".join(c if c.isprintable() else " " for c in str(text)).replace("`", "'")
