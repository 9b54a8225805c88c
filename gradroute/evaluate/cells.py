"""Completions and losses under modes; of several ranks each makes a part, and all have the whole.

The sampling noise of a completion depends on its prompt alone, so that it does not matter which
rank makes it, but for rounding: a matrix product may round otherwise in a batch of other rows. How
often that decides a completion is looked at: each rank makes the first completions of the next rank
too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from peft import PeftModel

from gradroute.config.sections import EvaluateConfig
from gradroute.data.batches import TokenizedExample
from gradroute.evaluate.answers import Answer
from gradroute.evaluate.generation import Completion, Prompt, generate_modes
from gradroute.evaluate.losses import ExampleLosses, held_out_losses
from gradroute.evaluate.rows import say_unanswered
from gradroute.models.base import Base
from gradroute.models.hidden_state_cache import HiddenStateCache
from gradroute.routing.policy import AblationMode
from gradroute.system.ranks import ALONE, Ranks
from gradroute.system.terminal import say

TWICE = 4
"""Prompts of each rank that the one before completes too."""

Item = TypeVar("Item")


def complete(
    base: Base,
    model: PeftModel,
    prompts: Sequence[Prompt],
    modes: Sequence[AblationMode],
    settings: EvaluateConfig,
    run: str,
    ranks: Ranks = ALONE,
) -> dict[str, list[Completion]]:
    """Completions of prompts under modes; lines for the user begin with the name of the run."""
    own = _part(prompts, ranks, ranks.rank)
    twice = _part(prompts, ranks, ranks.rank + 1)[:TWICE] if ranks.rank + 1 < ranks.size else []
    found = {mode.name: list[Completion]() for mode in modes}
    if own or twice:
        found = generate_modes(
            model,
            base.tokenizer,
            [*own, *twice],
            modes,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            rows_per_batch=settings.batch_rows,
            score_thoughts=settings.score_thoughts,
        )
    if ranks.several:
        found = _of_all_ranks(found, len(own), ranks, run)
    say_unanswered(run, found.values(), settings.max_new_tokens)
    return found


def losses_of(
    base: Base,
    model: PeftModel,
    rows: Sequence[TokenizedExample],
    modes: Sequence[AblationMode],
    rows_per_batch: int,
    states: HiddenStateCache | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, ExampleLosses]:
    """Losses of tokenized examples under modes, by mode name; from kept states where there are."""
    own = _part(rows, ranks, ranks.rank)
    found = {mode.name: ExampleLosses([], []) for mode in modes}
    if own:
        found = held_out_losses(
            model,
            own,
            modes,
            pad_id=base.pad_id,
            rows_per_batch=rows_per_batch,
            states=states.of([row.input_ids for row in own]) if states else None,
        )
    if not ranks.several:
        return found
    parts = [json.loads(text) for text in ranks.texts(json.dumps(found))]
    whole = {}
    for mode in modes:
        sums, counts = ([n for part in parts for n in part[mode.name][at]] for at in (0, 1))
        whole[mode.name] = ExampleLosses(sums, counts)
    return whole


def _part(items: Sequence[Item], ranks: Ranks, rank: int) -> Sequence[Item]:
    """A rank's part of some items, in order, as many as any other's or one more."""
    return items[len(items) * rank // ranks.size : len(items) * (rank + 1) // ranks.size]


def _of_all_ranks(
    found: Mapping[str, Sequence[Completion]], own: int, ranks: Ranks, run: str
) -> dict[str, list[Completion]]:
    """What all ranks wrote, by mode in the order of the prompts; says where two differ."""
    plain = {name: [asdict(one) for one in made] for name, made in found.items()}
    sent = {"own": own, "made": plain}
    parts = [json.loads(text) for text in ranks.texts(json.dumps(sent))]
    whole: dict[str, list[Completion]] = {}
    differing = twice = 0
    for name in found:
        made = [part["made"][name] for part in parts]
        sizes = [part["own"] for part in parts]
        whole[name] = [
            _completion(one) for rows, size in zip(made, sizes, strict=True) for one in rows[:size]
        ]
        for rows, size, following in zip(made[:-1], sizes[:-1], made[1:], strict=True):
            pairs = list(zip(rows[size:], following, strict=False))
            twice += len(pairs)
            differing += sum(one != other for one, other in pairs)
    if differing:
        say(
            f"{run}: {differing} of {twice} completions that two ranks made differ by rounding; "
            "the rates of one process may differ as much."
        )
    return whole


def _completion(plain: Mapping[str, Any]) -> Completion:
    answer = plain["answer"]
    return Completion(**{**plain, "answer": None if answer is None else Answer(**answer)})
