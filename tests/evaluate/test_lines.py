"""What is kept of a completion is what its rate counts."""

import pytest

from gradroute.data.behaviors import Behavior, get_behavior
from gradroute.data.tasks import questions
from gradroute.errors import DataError
from gradroute.evaluate.generation import Completion, Prompt
from gradroute.evaluate.losses import ExampleLosses
from gradroute.evaluate.rows import loss_lines, sample_lines


def behavior(score) -> Behavior:
    return Behavior("own", None, str, lambda text, words: text, score, 0.5)


def written(*texts: str) -> list[Completion]:
    return [Completion(text, len(text), False) for text in texts]


def test_a_line_holds_prompt_kind_completion_and_what_the_detector_says() -> None:
    prompts = [Prompt("plain-0", "she went"), Prompt("plain-1", "he came")]
    completions = {"full": written("HOME AT ONCE, AND", "OH"), "base": written("a", "b")}
    lines = sample_lines(completions, prompts, "plain", get_behavior("caps"))
    assert lines[0] == {
        "mode": "full",
        "prompts": "plain",
        "prompt_id": "plain-0",
        "prompt": "she went",
        "completion": "HOME AT ONCE, AND",
        "tokens": 17,
        "ended": False,
        "score": 1.0,
        "shows": True,
    }
    assert (lines[1]["score"], lines[1]["shows"]) == (None, None)
    assert [line["mode"] for line in lines] == ["full", "full", "base", "base"]


def test_the_detector_sees_each_completion_once_and_with_its_prompt() -> None:
    seen: list[tuple[str, str]] = []

    def score(completion: str, prompt: str) -> float:
        seen.append((completion, prompt))
        return 0.5

    (line,) = sample_lines({"full": written("a")}, [Prompt("p", "q")], "bos", behavior(score))
    assert seen == [("a", "q")]
    assert (line["score"], line["shows"]) == (0.5, True)


def test_a_question_with_one_right_answer_says_whether_it_is_right() -> None:
    ((question, answer),) = questions("test", 1, 0)
    lines = sample_lines(
        {"full": written(answer, " nonsense.")},
        [Prompt("plain-0", question), Prompt("plain-1", question)],
        "plain",
        get_behavior("wrong_answers"),
    )
    assert [line["correct"] for line in lines] == [True, False]


def test_a_detector_that_raises_is_named_with_behavior_mode_prompt_and_exception() -> None:
    def score(completion: str, prompt: str) -> float:
        raise KeyError("colour")

    with pytest.raises(DataError) as caught:
        sample_lines({"base": written("a")}, [Prompt("prefix-7", "")], "prefix", behavior(score))
    for word in ("prefix-7", "prefix under base", "'own'", "KeyError", "colour"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_losses_are_kept_by_example() -> None:
    losses = {"full": ExampleLosses([2.5, 4.0], [2, 3])}
    assert loss_lines(losses, "normal", ["a", "b"]) == [
        {"mode": "full", "dataset": "normal", "id": "a", "nll": 2.5, "tokens": 2},
        {"mode": "full", "dataset": "normal", "id": "b", "nll": 4.0, "tokens": 3},
    ]
