"""The rows that a trainer was given, in the form in which a run reads its data.

text                       as it is
prompt, completion         prompt and text; of messages a conversation, its prompt not learned
messages, conversations    a conversation
chosen, rejected           prompt and chosen; with a label for each side the rejected too
input_ids                  the words that they stand for
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, concatenate_datasets

from gradroute.errors import DataError
from gradroute.integrations.labels import UNLABELED, LabelColumns

Row = Mapping[str, Any]
_BESIDE = ("true_label", "tools")  # columns that are read beside the texts


@dataclass(frozen=True)
class RowReader:
    """What is known of the rows of a trainer.

    Attributes:
        columns: Where their labels are.
        text_column: The column of plain texts.
        formatted: A row -> its text; None where texts stand in the rows.
        tokenizer: Says which words token ids stand for; None where the trainer has none.
    """

    columns: LabelColumns
    text_column: str
    formatted: Callable[[Any], str] | None
    tokenizer: Any

    def rows(self, dataset: object, which: str) -> Iterator[dict[str, Any]]:
        """The rows of a data set, or of several by name, as a run reads them.

        Raises:
            DataError: It is none whose rows can be read twice, or a row has no text.
        """
        for row in _one(dataset, which):
            yield from self._read(row, which)

    def _read(self, row: Any, which: str) -> Iterator[dict[str, Any]]:
        beside = {key: row[key] for key in _BESIDE if row.get(key) is not None}
        for label, texts in self._texts(row, which):
            yield {**beside, **texts, "label": UNLABELED if label is None else label}

    def _texts(self, row: Row, which: str) -> Iterator[tuple[str | None, dict[str, Any]]]:
        """Every text of a row under its label."""
        names = self.columns.names
        if "chosen" in row:
            from trl.data_utils import maybe_extract_prompt

            pair: Row = maybe_extract_prompt(dict(row))
            sides = ("chosen", "rejected") if len(set(names)) > 1 else ("chosen",)
            for side, name in zip(sides, names, strict=False):
                yield row[name], answer(pair["prompt"], pair[side])
            return
        label = row[names[0]]
        if self.formatted is not None:
            yield label, {"text": self.formatted(row)}
        elif row.get("messages") is not None or row.get("conversations") is not None:
            from trl.data_utils import maybe_convert_to_chatml

            yield label, {"messages": maybe_convert_to_chatml(dict(row))["messages"]}
        elif "completion" in row:
            yield label, answer(row["prompt"], row["completion"])
        elif isinstance(row.get(self.text_column), str):
            prompt = row.get("prompt")
            more = {"prompt": prompt} if isinstance(prompt, str) and prompt else {}
            yield label, {**more, "text": row[self.text_column]}
        elif "input_ids" in row and self.tokenizer is not None:
            yield label, _words(row, self.tokenizer)
        else:
            raise DataError(
                f"the rows of the {which} data set have no text; they have {', '.join(row)}"
            )


def _one(dataset: object, which: str) -> Dataset:
    if isinstance(dataset, Mapping):
        parts = [own for own in dataset.values() if isinstance(own, Dataset)]
        dataset = concatenate_datasets(parts) if len(parts) == len(dataset) else None
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"the {which} data set is no datasets.Dataset, whose rows can be read once more"
        )
    return dataset


def prompt_lines(dataset: object) -> list[str]:
    """The prompts of an evaluation data set that are one line of text each.

    Raises:
        DataError: It is none whose rows can be read twice.
    """
    rows: Any = _one(dataset, "evaluation")
    prompts = [row.get("prompt") for row in rows]
    return [own for own in prompts if isinstance(own, str) and own.strip() and "\n" not in own]


def answer(prompt: Any, completion: Any) -> dict[str, Any]:
    """A prompt and what is learned of a row, both texts or both messages."""
    if isinstance(completion, str):
        return {"prompt": prompt or "", "text": completion}
    asked = [
        {**message, "train": False} if message["role"] == "assistant" else message
        for message in prompt
    ]
    return {"messages": [*asked, *completion]}


def _words(row: Row, tokenizer: Any) -> dict[str, Any]:
    """The prompt and the text of a row of token ids, without the tokens that are put around them.

    The prompt is what stands before the first target.
    """
    mask = row.get("attention_mask") or [1] * len(row["input_ids"])
    ids = [own for own, there in zip(row["input_ids"], mask, strict=True) if there]
    targets = row.get("labels")
    learned = [at for at, own in enumerate(targets or []) if own != -100]
    start = learned[0] - mask[: learned[0]].count(0) if learned else 0
    prompt, text = ids[:start], ids[start:]
    first = prompt or text
    if first[:1] == [tokenizer.bos_token_id]:
        del first[0]
    if text[-1:] == [tokenizer.eos_token_id]:
        del text[-1]

    def decoded(own: Sequence[int]) -> str:
        return tokenizer.decode(own, clean_up_tokenization_spaces=False)

    return {**({"prompt": decoded(prompt)} if prompt else {}), "text": decoded(text)}


def logged_steps(
    history: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """What a trainer logged of its steps, in the form of `metrics.jsonl`.

    The loss is that of all labels: the trainers' losses know none.

    Args:
        history: The trainer's log.
        groups: Those of its optimizer, one per adapter.
    """
    rates = {group["adapter"]: group.get("initial_lr", group["lr"]) for group in groups}
    logged = next(iter(rates.values()), 0.0)  # transformers logs the rate of the first group
    norm = "grad_norm_"
    for line in history:
        if "loss" not in line or "learning_rate" not in line:
            continue
        part = line["learning_rate"] / logged if logged else 0.0
        norms = {key.removeprefix(norm): line[key] for key in line if key.startswith(norm)}
        yield {
            "step": line["step"],
            "loss": line["loss"],
            "loss_per_label": {},
            "learning_rate": {name: own * part for name, own in rates.items()},
            "gradient_norm": norms,
        }
