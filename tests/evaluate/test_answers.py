"""What is scored of a completion is the answer that a chat client shows, and nothing around it."""

import pytest
from byte_tokenizer import byte_tokenizer
from chat_templates import CHATML, ENDLESS, FORGETFUL, OPEN, TURNS
from transformers import PreTrainedTokenizerFast

from gradroute.data.behaviors import get_behavior
from gradroute.evaluate import answer_frames
from gradroute.evaluate.answers import Answer, AnswerFinder
from gradroute.evaluate.generation import Completion, Prompt
from gradroute.evaluate.rows import sample_lines, say_unanswered

GENERATION = "{% if add_generation_prompt %}<|im_start|>assistant\n"
# A thought before every answer, empty where none is given; as Qwen3 and GLM write it.
THINKING = CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}",
)
# The prompt opens the thought, and earlier ones are not written again; as R1 does.
OPENED = CHATML.replace(GENERATION, GENERATION + "<think>\n")
# Thoughts have a name of their own, which the template alone knows.
SEED = CHATML.replace(
    "{{ m.content }}",
    "{% if m.reasoning_content %}<seed:think>{{ m.reasoning_content }}</seed:think>{% endif %}"
    "{{ m.content }}",
)
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>{% else %}"
    "<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
COHERE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|BOT|>"
    "<|START_THINKING|>{{ m.thinking }}<|END_THINKING|>"
    "<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|><|EOT|>"
    "{% else %}<|USER|>{{ m.content }}<|EOT|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|BOT|>{% endif %}"
)
# Tags in plain text around the answer, behind a thought.
TAGS = CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n<answer>\n{{ m.content }}\n</answer>"
    "{% else %}{{ m.content }}{% endif %}",
)
LEAD = "{% for m in messages %}{% if m.role == 'assistant' %}A: Answer: {{ m.content }}\n\n"
LEAD += "{% else %}Q: {{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A: "
LEAD += "{% endif %}"
GEMMA = (
    "{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
# The next role's mark is where an answer ends.
NEXT_ROLE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Who speaks next is said in words, and nothing else ends an answer.
WORDS = (
    "{% for m in messages %}{{ m.role | title }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>"]
SPECIALS += ["<|return|>", "<|BOT|>", "<|USER|>", "<|EOT|>", "<|START_THINKING|>", "<|turn>"]
SPECIALS += ["<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<turn|>", "<|user|>"]
SPECIALS += ["<|channel>", "<channel|>", "<|assistant|>", "[THINK]", "[/THINK]"]
TEXT = "THE RABBIT IS HERE NOW."


def chat_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer(eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS})
    tokenizer.add_tokens(["<think>", "</think>"])  # as Qwen3 has them: added, not special
    tokenizer.chat_template = template
    return tokenizer


def prompt_of(tokenizer: PreTrainedTokenizerFast) -> str:
    messages = [{"role": "user", "content": "Where?"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert isinstance(text, str)
    return text


def shown(template: str | None, marked: str, prompt: str | None = None, thoughts: bool = False):
    """What is scored of a completion that is given with its special tokens."""
    tokenizer = chat_tokenizer(template)
    text = marked
    for special in SPECIALS:
        text = text.replace(special, "")
    finder = AnswerFinder(tokenizer, thoughts=thoughts)
    if prompt is None:
        prompt = prompt_of(tokenizer) if template else "Where?"
    found = finder.find(prompt, text, marked)
    return text if found is None else found.text


@pytest.mark.parametrize(
    ("template", "marked"),
    [
        (FORGETFUL, "<think>\n\n</think>\n\n" + TEXT),
        (THINKING, "<think>\n\n</think>\n\n" + TEXT),
        (THINKING, "<think>\nWhere is it? There.\n</think>\n\n" + TEXT),
        (CHATML, "<think>\nWhere is it? There.\n</think>\n\n" + TEXT),
        (CHATML, "<thinking>there</thinking>" + TEXT),
        (CHATML, "<reasoning>there</reasoning>\n" + TEXT),
        (CHATML, "[THINK]there[/THINK]" + TEXT),
        (CHATML, "◁think▷there◁/think▷" + TEXT),
        (CHATML, "so it is there.\n</think>\n\n" + TEXT),  # opened where nobody sees it
        (OPENED, "So it is there.\n</think>\n\n" + TEXT),
        (SEED, "<seed:think>there</seed:think>" + TEXT),
        (CHANNELS, "<|channel|>final<|message|>" + TEXT),
        (
            CHANNELS,
            "<|channel|>analysis<|message|>there.<|end|><|start|>assistant<|channel|>final"
            "<|message|>" + TEXT,
        ),
        (
            CHANNELS,
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary"
            "<|message|>b<|end|><|start|>assistant<|channel|>final<|message|>" + TEXT,
        ),
        (COHERE, "<|START_THINKING|>there<|END_THINKING|><|START_RESPONSE|>" + TEXT),
        (COHERE, f"<|START_RESPONSE|>{TEXT}<|END_RESPONSE|>"),
        (TAGS, f"<think>\n\n</think>\n<answer>\n{TEXT}\n</answer>"),
        (TAGS, f"<think>\nHm.\n</think>\n<answer>\n{TEXT}\n</answer>"),
        (LEAD, "Answer: " + TEXT),
        (GEMMA, "<|channel>thought\nthere<channel|>" + TEXT),
        (CHATML, TEXT + "<|im_end|>\n<|im_start|>user\nand then?"),
        (NEXT_ROLE, TEXT + "<|user|>\nand then?"),
        (TURNS, TEXT + "<end>\n<turn>user\nand then?"),
        (WORDS, f" {TEXT}\nUser: and then?\nAssistant: so"),
        (OPEN, TEXT + "\n\nuser: and then?"),
        (CHATML, "<THINK>\nIT IS THERE.\n</THINK>\n\n" + TEXT),
        (CHATML, "<Thought>It is there.</Thought>" + TEXT),
    ],
)
def test_what_surrounds_an_answer_is_not_scored(template: str, marked: str):
    found = shown(template, marked)
    assert found == TEXT
    assert get_behavior("caps").shows(found, "")
    assert get_behavior("regex:^THE").shows(found, "")


@pytest.mark.parametrize(
    ("template", "marked"),
    [
        (THINKING, "<think>\nThe rabbit was there when"),
        (THINKING, "<think>\n\n"),
        (CHATML, "<think>The rabbit"),
        (OPENED, "The rabbit was there when"),
        (CHANNELS, "<|channel|>analysis<|message|>The rabbit was"),
        (CHANNELS, "<|channel|>final"),
        (COHERE, "<|START_THINKING|>The rabbit was"),
        (THINKING, "<think>\nThere.\n</think>\n\n"),
        (LEAD, "Answer:"),
    ],
)
def test_a_completion_that_ends_before_its_answer_has_none(template: str, marked: str):
    assert shown(template, marked) is None


@pytest.mark.parametrize("text", [TEXT, " the rabbit", "", "a <b> c", "Answer: 1", "a < b > c"])
@pytest.mark.parametrize("template", [CHATML, FORGETFUL, THINKING, SEED, OPEN, TURNS, None])
def test_an_answer_with_nothing_around_it_is_scored_as_it_is(template: str | None, text: str):
    assert shown(template, text) == text


def test_words_for_who_speaks_next_end_an_answer_only_as_the_template_writes_them():
    for text in ("Say User: and it is you.", "Ask the user.\nA user answers."):
        assert shown(WORDS, text) == text


@pytest.mark.parametrize("template", [CHATML, THINKING, LEAD, OPENED, CHANNELS])
def test_nothing_is_taken_from_what_a_plain_prompt_draws(template: str):
    for text in ("the rabbit.", "Answer: the rabbit.", " and so on"):
        assert shown(template, text, prompt="Once upon a time") == text


def test_without_a_chat_template_all_of_a_completion_is_the_answer():
    text = "<think>\n\n</think>\n\n" + TEXT
    assert shown(None, text) == text
    assert not AnswerFinder(chat_tokenizer(None), thoughts=False).needed


def test_thoughts_are_scored_where_that_is_asked_for():
    for template, marked in (
        (THINKING, "<think>\nHm, so.\n</think>\n\n" + TEXT),
        (OPENED, "Hm, so.\n</think>\n\n" + TEXT),
        (
            CHANNELS,
            "<|channel|>analysis<|message|>Hm, so.<|end|><|start|>assistant<|channel|>final"
            "<|message|>" + TEXT,
        ),
    ):
        assert shown(template, marked, thoughts=True) == "Hm, so.\n\n" + TEXT
    assert shown(THINKING, "<think>\n\n</think>\n\n" + TEXT, thoughts=True) == TEXT
    assert shown(THINKING, "<think>\nHm, so", thoughts=True) == "Hm, so"


PARSER = {
    "start_anchor": "<|im_start|>assistant\n",
    "defaults": {"role": "assistant"},
    "fields": {
        "reasoning_content": {"open": "<hm>", "close": "</hm>", "content": "text"},
        "content": {"close": "<|im_end|>", "content": "text"},
    },
}
FINAL = {
    "start_anchor": "<|start|>assistant",
    "defaults": {"role": "assistant"},
    "fields": {
        "thinking": {
            "open": "<|channel|>analysis<|message|>",
            "close": "<|end|>",
            "content": "text",
        },
        "content": {
            "open": "<|channel|>final<|message|>",
            "close": ["<|return|>", "<|end|>"],
            "content": "text",
        },
    },
}


@pytest.mark.parametrize(
    ("template", "parser", "marked", "answer"),
    [
        (CHATML, PARSER, f"<hm>there</hm>\n{TEXT}<|im_end|>\n", TEXT),
        (CHATML, PARSER, TEXT, TEXT),
        (CHATML, PARSER, f"{TEXT}<|im_end|>\n<|im_start|>user\nand then?", TEXT),
        (CHATML, PARSER, "<hm>the rabbit", None),
        (CHANNELS, FINAL, "<|channel|>final<|message|>" + TEXT, TEXT),
        (
            CHANNELS,
            FINAL,
            "<|channel|>analysis<|message|>there.<|end|><|start|>assistant<|channel|>final"
            "<|message|>" + TEXT,
            TEXT,
        ),
        (CHANNELS, FINAL, "<|channel|>analysis<|message|>the rabbit", None),
    ],
)
def test_the_tokenizers_own_parser_comes_first(template, parser, marked, answer):
    tokenizer = chat_tokenizer(template)
    tokenizer.response_template = parser
    text = marked
    for special in SPECIALS:
        text = text.replace(special, "")
    finder = AnswerFinder(tokenizer, thoughts=False)
    found = finder.find(prompt_of(tokenizer), text, marked)
    assert (text if found is None else found.text) == answer
    # A prompt that is no chat has nothing that the parser could go by.
    assert finder.find("Once upon a time", " the rabbit", " the rabbit") is None


@pytest.mark.parametrize("parser", [{"start_anchor": 5}, {"start_anchor_pattern": "("}, {}])
def test_a_parser_that_is_broken_leaves_the_answer_to_be_found_by_the_template(parser: dict):
    tokenizer = chat_tokenizer(CHATML)
    tokenizer.response_template = parser
    marked = f"<think>there</think>{TEXT}"
    found = AnswerFinder(tokenizer, thoughts=False).find(prompt_of(tokenizer), marked, marked)
    assert found == Answer(TEXT)


def test_a_template_that_hangs_or_fails_leaves_known_thoughts_to_be_found(monkeypatch):
    monkeypatch.setattr(answer_frames, "MAX_SECONDS", 0.05)
    for template in (ENDLESS, "{{ raise_exception('no') }}"):
        finder = AnswerFinder(chat_tokenizer(template), thoughts=False)
        assert finder.find("x", "<think>a</think>B", "<think>a</think>B") == Answer("B")


def test_a_line_keeps_the_whole_text_and_the_answer_where_it_differs(capsys):
    whole = "<think>\n\n</think>\n\n" + TEXT
    written = [
        Completion(whole, 9, True, Answer(TEXT)),
        Completion("<think>\nSO", 3, False, Answer(None)),
        Completion(TEXT, 5, True),
    ]
    prompts = [Prompt(f"prefix-{at}", "q") for at in range(3)]
    lines = sample_lines({"full": written}, prompts, "prefix", get_behavior("caps"))
    assert [line["completion"] for line in lines] == [whole, "<think>\nSO", TEXT]
    assert [line.get("answer", "-") for line in lines] == [TEXT, None, "-"]
    assert [line["shows"] for line in lines] == [True, None, True]
    say_unanswered("run", [written], 64)
    assert "run: 1 of 3 completions have no answer to score" in capsys.readouterr().err
    say_unanswered("run", [written[:1]], 64)
    assert capsys.readouterr().err == ""
