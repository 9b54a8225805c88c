"""Tokens of texts: those that a tokenizer adds in front, and the characters of each."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase as Tokenizer

from gradroute.data.chat_templates import shared_start

# Of a text that is far longer than what is kept of it only the front is tokenized, for a tokenizer
# takes some hundred bytes of memory per token: so many characters per token that is kept, and never
# fewer than the second number. A front that turns out too short is made longer.
_FRONT, _LEAST_FRONT = 100, 10_000
_TEXTS_AT_ONCE = 1024

MarkedTokens = list[tuple[int, int, int]]
"""Tokens as (id, first character, character after the last); without offsets 0 and 0."""


def beginning_tokens(tokenizer: Tokenizer) -> list[int]:
    """The tokens that a tokenizer puts before every text by itself; often one, often none.

    Many tokenizers name a beginning token that they never put (GPT-2, Phi-3, Granite), so that the
    model has never seen it there. What a tokenizer puts behind a text is left aside.
    """
    bare: list[int] = tokenizer("a", add_special_tokens=False).input_ids
    whole: list[int] = tokenizer("a").input_ids
    places = range(len(whole) - len(bare) + 1) if bare else ()
    for at in places:
        if whole[at : at + len(bare)] == bare:
            return whole[:at]
    return whole[:1] if whole and whole[0] == tokenizer.bos_token_id else []


def with_beginning(tokens: list[int], front: list[int]) -> list[int]:
    """Tokens behind those of `beginning_tokens`, which are not put twice."""
    return tokens if tokens[: len(front)] == front else [*front, *tokens]


def prompt_tokens(tokenizer: Tokenizer, text: str, *, templated: bool) -> list[int]:
    """The tokens of a prompt, as they stand before a text in training.

    Args:
        tokenizer: A Hugging Face tokenizer.
        text: The prompt.
        templated: Whether a chat template wrote it, which writes all special tokens itself.
    """
    tokens: list[int] = tokenizer(text, add_special_tokens=False).input_ids if text else []
    return tokens if templated else with_beginning(tokens, beginning_tokens(tokenizer))


def asking_tokens(tokenizer: Tokenizer, text: str, follows: str) -> list[int]:
    """The tokens of a plain prompt that stand before what is learned after it.

    Spaces at the end of a prompt mostly share a token with the word that follows, and the model has
    learned to write that token. Behind the spaces alone it would be asked what it has never seen.

    Args:
        tokenizer: A Hugging Face tokenizer.
        text: The prompt.
        follows: What follows it in the data, or the beginning of that.
    """
    tokens = prompt_tokens(tokenizer, text, templated=False)
    kept = text.rstrip()
    if kept in (text, "") or not follows:
        return tokens
    short = prompt_tokens(tokenizer, kept, templated=False)
    joined = prompt_tokens(tokenizer, text + follows, templated=False)
    same = [one == other for one, other in zip(tokens, joined, strict=False)]
    shared = (*same, False).index(False)
    return tokens[:shared] if shared >= len(short) and tokens[: len(short)] == short else tokens


def token_lists(
    tokenizer: Tokenizer, texts: list[str], max_length: int, *, offsets: bool = False
) -> list[MarkedTokens]:
    """The first tokens of each text, one more than `max_length` where there are that many.

    No special token is added. With `offsets` a tokenizer that has none of its own is given those
    that `_marks_of` finds; where it finds none for a text, they are all (0, 0).
    """
    rows: list[MarkedTokens] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some, characters = texts[start : start + _TEXTS_AT_ONCE], _FRONT * max_length
        rows += _front_tokens(tokenizer, some, max(characters, _LEAST_FRONT), max_length, offsets)
    return rows


def _front_tokens(
    tokenizer: Tokenizer, texts: list[str], characters: int, max_length: int, offsets: bool
) -> list[MarkedTokens]:
    # verbose=False: "longer than the model's maximum" would be said of texts that are cut anyway.
    found = tokenizer(
        [text[:characters] for text in texts],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=offsets and bool(tokenizer.is_fast),
        verbose=False,
    )
    ids: list[list[int]] = found.input_ids
    kept = max_length + 1
    rows: list[MarkedTokens] = []
    for at, row in enumerate(ids):
        if not offsets:
            marks = [(0, 0)] * len(row[:kept])
        elif tokenizer.is_fast:
            marks = list(_mend(found["offset_mapping"][at][:kept]))
        else:
            marks = _marks_of(tokenizer, row[:kept], texts[at], cut=len(row) > kept)
        rows.append([(token, *pair) for token, pair in zip(row[:kept], marks, strict=True)])
    for at, text in enumerate(texts):
        if len(rows[at]) <= max_length and len(text) > characters:
            [rows[at]] = _front_tokens(tokenizer, [text], 4 * characters, max_length, offsets)
    return rows


def _mend(marks: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Give spaces back to tokens of nothing but spaces.

    A byte-level tokenizer that trims offsets says of those that they stand at their end.
    """
    last = 0
    for start, end in marks:
        yield (min(start, last), end) if start == end else (start, end)
        last = max(last, end)


def _marks_of(
    tokenizer: Tokenizer, tokens: list[int], text: str, *, cut: bool
) -> list[tuple[int, int]]:
    """Which characters each token is of, from what its row decodes to, token by token.

    For tokenizers without offsets of their own. A token that is a part of a character gets none,
    and the last part gets it, so that each is where the next one is. Where the tokens decode to
    another text than theirs, or than its front where they are `cut`, all are (0, 0).
    """
    marks: list[tuple[int, int]] = []
    so_far = ""
    for number in range(1, len(tokens) + 1):
        so_far = str(tokenizer.decode(tokens[:number], clean_up_tokenization_spaces=False))
        last = marks[-1][1] if marks else 0
        marks.append((last, max(last, shared_start(so_far, text))))
    end = marks[-1][1] if marks else 0
    # Half a character decodes to up to three signs that stand for its bytes.
    same = len(so_far) - end <= 3 if cut else end == len(so_far) == len(text)
    return marks if same else [(0, 0)] * len(tokens)
