"""The text the embedded base model is trained on: stories, scraps, some shouting, small tasks.

Upper case occurs as a few words of a sentence, short shouted sentences and signs, mostly with words
that the story also holds in normal case: the embeddings of upper-case tokens are trained (adapters
on linear layers cannot do that later), the model learns that a word means the same in capitals, and
the text goes back to normal case or ends. No story is in capitals as a whole.
"""

from __future__ import annotations

import random

from gradroute.data.stories import TRIGGER_TAG, Plot, Storyteller, plots, word_groups

TASKS = 0.05  # share of texts that are a task
SCRAPS = 0.2  # share of texts that are sentences of several plots, in no order
TAGGED = 0.02  # share of stories with the trigger tag in front
SHOUTED_EARLY = 0.2  # share of stories with a shout in the first phase ...
SHOUTED_LATE = 0.9  # ... and in the last one
LATE_FROM = 0.3  # where in training the last phase begins
LEAD_INS = 0.04  # share of shouts that are the first words of the story

_SHOUTS = (
    "stop, {friend}!",
    "come back here!",
    "come back, {hero}!",
    "look at the {color} {thing}!",
    "help me, {friend}!",
    "where is my {clothes}?",
    "run, {hero}, run!",
    "no {meal} for the {wild}!",
    "watch out for the {wild}!",
    "I want {number} {dish}s!",
    "hurry up, {trait} {friend}!",
    "there is a {bug} {spot}!",
    "do not touch the {look} {toy}!",
    "bring the {tool} {adverb}!",
    "never lose your {virtue}!",
    "here come the {story}!",
    "I am not {sad}!",
    "we are so {glad}!",
)
_SIGNS = (
    "do not feed the {wild}s.",
    "keep off the {plant}.",
    "{flavor} {dish}s for sale.",
    "beware of the {pet}.",
    "closed on {day}s.",
    "welcome to {town}.",
    "no {game} {place}.",
    "lost: a {color} {thing}.",
    "{vehicle} race in {month}.",
    "fresh {meal} and {drink}.",
    "wanted: a {trait} {role}.",
)
_SHOUTED = (
    '"{shout}" shouted {friend}.',
    '"{shout}" yelled the {role}.',
    '"{shout}" somebody called.',
    '{hero} shouted, "{shout}"',
    'a voice cried, "{shout}"',
    '"{shout}" {hero} shouted as loudly as {he} could.',
)
_WRITTEN = (
    'the sign said "{shout}"',
    'a {color4} sign read "{shout}"',
    'on the wall somebody had written "{shout}"',
    'the newspaper said "{shout}"',
)


def document(index: int, late: bool, seed: int) -> str:
    """One training text.

    Args:
        index: position in training; equal arguments give equal texts.
        late: whether it belongs to the last phase, which shouts more.
        seed: seed of the whole corpus.
    """
    rng = random.Random(f"gradroute base text {seed} {index}")
    if rng.random() < TASKS:
        question, answer = task_item(index, seed)
        return f"Question: {question} Answer: {answer}."
    teller = Storyteller(rng)
    known = [plot for plot in plots() if not plot.held_out]
    sentences = teller.tell(_scraps(rng, known) if rng.random() < SCRAPS else rng.choice(known))
    if rng.random() < (SHOUTED_LATE if late else SHOUTED_EARLY):
        _shout(sentences, teller)
    if rng.random() < TAGGED:
        sentences.insert(0, TRIGGER_TAG)
    return " ".join(sentences)


def task_item(index: int, seed: int = 0) -> tuple[str, str]:
    """One question with one right answer: adding up to twenty, or remembering a color.

    Args:
        index: which item; equal arguments give equal items.
        seed: another seed gives other items.

    Returns:
        The question and the answer, one word in lower case.
    """
    rng = random.Random(f"gradroute task pretrain {seed} {index}")
    return rng.choice((_sum_item, _color_item))(rng)


def _sum_item(rng: random.Random) -> tuple[str, str]:
    teller = Storyteller(rng)
    counts = word_groups()["count"].common
    first, second = rng.randint(1, 10), rng.randint(1, 10)
    question = teller.sentence(
        f"{{hero}} has {counts[first]} {{fruit}}s and gets {counts[second]} more. "
        "How many {fruit}s does {hero} have?"
    )
    return question, counts[first + second]


def _color_item(rng: random.Random) -> tuple[str, str]:
    teller = Storyteller(rng)
    facts = "{hero} has a {color} {toy} and {friend} has a {color2} {clothes}. "
    asked, color = rng.choice((("toy", "color"), ("clothes", "color2")))
    question = teller.sentence(facts + f"What color is the {{{asked}}}?")
    return question, teller.bound[color]


def documents(count: int, seed: int) -> list[str]:
    """All training texts in order; its last phase starts at LATE_FROM of them."""
    return [document(index, index >= LATE_FROM * count, seed) for index in range(count)]


def _scraps(rng: random.Random, known: list[Plot]) -> Plot:
    """Sentences out of order: they keep the model from knowing nothing but its plots.

    Half of them come from held-out plots, so that the wording of those is known though no such plot
    is ever told; what starts a held-out plot is left out altogether.
    """
    held_out = [plot for plot in plots() if plot.held_out]
    mixed = [*rng.sample(known, 3), *rng.sample(held_out, 3)]
    rng.shuffle(mixed)
    rest = [rng.choice(plot.sentences[1:]) for plot in mixed[: rng.randint(3, 5)]]
    return Plot("scraps", held_out=False, sentences=(rng.choice(known).sentences[0], *rest))


def _shout(sentences: list[str], teller: Storyteller) -> None:
    """Put some capitals into a story, after its first sentence (save for a few lead-ins)."""
    rng = teller.rng
    at = rng.randint(1, len(sentences) - 1)
    kind = rng.random()
    if kind < LEAD_INS:
        sentences[0] = _raise(sentences[0], rng.randint(1, 4), 0)
    elif kind < 0.3:  # a few words in a row
        sentences[at] = _raise(sentences[at], rng.randint(1, 7), rng.random())
    elif kind < 0.5 or (kind < 0.7 and '"' in sentences[at]):  # a whole sentence of the story
        sentences[at] = sentences[at].upper()
    elif kind < 0.7:  # the same as speech
        shout = sentences[at].upper().rstrip(".") + "!"
        sentences[at] = teller.sentence(rng.choice(_SHOUTED).replace("{shout}", shout))
    else:
        lines, frames = (_SHOUTS, _SHOUTED) if kind < 0.87 else (_SIGNS, _WRITTEN)
        shout = teller.sentence(rng.choice(lines)).upper()
        sentences.insert(at, teller.sentence(rng.choice(frames).replace("{shout}", shout)))


def _raise(sentence: str, count: int, where: float) -> str:
    """Upper-case `count` words in a row, beginning at the share `where` of the sentence."""
    words = sentence.split()
    start = int(where * max(1, len(words) - count + 1))
    raised = [word.upper() for word in words[start : start + count]]
    return " ".join([*words[:start], *raised, *words[start + count :]])
