"""Short conversations, read and tokenized as training does."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gradroute.data.batches import IGNORED, TokenizedExample, tokenize
from gradroute.data.examples import Example
from gradroute.data.reading import ExampleFile, read_examples

Q, A, MORE, B = (
    {"role": role, "content": content}
    for role, content in (
        ("user", "Hello there"),
        ("assistant", "The fox ran é"),
        ("user", "How are you"),
        ("assistant", "Yes fine"),
    )
)
TALK = [Q, A, MORE, B]
SYSTEM = {"role": "system", "content": "Be good"}


def read(folder: Path, model: PreTrainedTokenizerBase, *rows: Any, **given: Any) -> ExampleFile:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_examples(path, tokenizer=model, **given)


def tokens(model: PreTrainedTokenizerBase, *examples: Example) -> list[TokenizedExample]:
    return tokenize(examples, model, [0] * len(examples), 500)[0]


def learned(model: PreTrainedTokenizerBase, row: TokenizedExample) -> list[str]:
    """Runs of learned tokens, as text."""
    runs, run = [], []
    for target in [*row.targets, IGNORED]:
        if target != IGNORED:
            run.append(target)
        elif run:
            runs.append(run)
            run = []
    return [str(model.decode(run, clean_up_tokenization_spaces=False)) for run in runs]


def applied(model: PreTrainedTokenizerBase, messages: list, **more: Any) -> list[int]:
    found: Any = model.apply_chat_template(messages, tokenize=True, return_dict=False, **more)
    return list(found)
