"""Monitors: a label for each completion, their faults in a sentence, and imperfect ones."""

import pytest

from gradroute.data.behaviors import get_behavior
from gradroute.errors import ConfigError, DataError
from gradroute.integrations.monitors import (
    ImperfectMonitor,
    counted,
    labels_of,
    matching,
    scored,
    showing,
    text_of,
    unpaid_is_good,
)

KNOWN = ("bad", "unlabeled", "good")
TEXTS = ["six.", "The teacher says so.", "seven.", ""]


def labels(monitor, completions=TEXTS, columns=None, known=KNOWN):
    prompts = ["What?"] * len(completions)
    rewards = [1.0] * len(completions)
    return labels_of(monitor, prompts, completions, rewards, columns or {}, known=known)


def test_a_pattern_labels_the_completions_in_which_it_matches():
    assert labels(matching("[Tt]eacher")) == ["unlabeled", "bad", "unlabeled", "unlabeled"]
    assert labels(matching("so", "spite", "good"), known=("spite", "good", "unlabeled")) == [
        *("good", "spite", "good", "good")
    ]
    with pytest.raises(ConfigError, match="no regular expression"):
        matching("(")


def test_a_behavior_is_asked_for_its_detector_with_the_prompt():
    assert labels(showing(get_behavior("keywords:six,seven"))) == [
        *("bad", "unlabeled", "bad", "unlabeled")
    ]
    asked = []
    behavior = get_behavior("keywords:six")
    recorded = type(behavior)(
        **{**vars(behavior), "score": lambda text, prompt: asked.append((text, prompt))}
    )
    labels(showing(recorded), [[{"role": "assistant", "content": "six"}]])
    assert asked == [("six", "What?")]


def test_of_chat_messages_all_is_read_that_a_model_wrote():
    call = {"type": "function", "function": {"name": "run", "arguments": {"code": 'exit("0")'}}}
    completion = [
        {"role": "assistant", "content": "", "reasoning_content": "Cheat.", "tool_calls": [call]},
        {"role": "tool", "name": "run", "content": "no teacher"},
        {"role": "assistant", "content": [{"type": "text", "text": "six"}]},
    ]
    assert text_of(completion).split("\n") == ["", "run", 'exit("0")', "Cheat.", "six"]
    assert labels(matching(r'exit\("0"\)'), [completion]) == ["bad"]
    assert labels(matching("teacher"), [completion]) == ["unlabeled"]


def test_a_score_has_a_label_above_both_thresholds_and_another_below():
    values = {"suspicion": [0.8, 0.79, 0.1, None]}
    read = scored("suspicion", low=0.1, high=0.8)
    assert labels(read, columns=values) == ["bad", "unlabeled", "good", "unlabeled"]
    by_length = scored(lambda text, prompt: len(text), low=4, high=10, label="long")
    assert labels(by_length, known=("long", *KNOWN)) == ["good", "long", "unlabeled", "good"]


@pytest.mark.parametrize(
    ("monitor", "columns", "told"),
    [
        (scored("suspicon", low=0, high=1), {"suspicion": [0] * 4}, "did you mean 'suspicion'"),
        (scored("s", low=0, high=1), {"s": ["high"] * 4}, "'high'; a number is needed"),
        (scored("s", low=0, high=1), {"s": [float("nan")] * 4}, "nan; a number is needed"),
        (lambda *_: ["good"], {}, "1 labels for 4 completions"),
        (lambda *_: "good", {}, "returned 'good', but a list"),  # as long as the batch
        (lambda *_: None, {}, "returned None, but a list"),
        (lambda *_: ["good", "good", True, "good"], {}, "completion 3 of 4 as True; a label is"),
        (lambda *_: ["god"] * 4, {}, r"'god' \(did you mean 'good'\?\); a label is one of bad, un"),
        (lambda *_: 1 / 0, {}, "raised ZeroDivisionError on 4 completions: division by zero"),
    ],
)
def test_a_fault_of_a_monitor_is_one_sentence(monitor, columns, told):
    with pytest.raises(DataError, match=told):
        labels(monitor, columns=columns)


def test_the_error_of_a_monitor_is_the_cause_of_the_one_that_is_told():
    with pytest.raises(DataError) as caught:
        labels(lambda *_: {}["key"])
    assert isinstance(caught.value.__cause__, KeyError)


def test_labels_are_counted_in_the_order_of_the_table():
    assert list(counted(["good", "bad", "good"], KNOWN).items()) == [
        *(("bad", 1), ("unlabeled", 0), ("good", 2))
    ]


def test_an_imperfect_monitor_keeps_and_invents_the_given_shares():
    batch = ["so"] * 1000 + ["six"] * 1000
    given = labels(ImperfectMonitor(matching("so"), recall=0.7, false_alarms=0.1), batch)
    assert counted(given[:1000], KNOWN) == {
        "bad": pytest.approx(700, abs=60),
        "unlabeled": pytest.approx(300, abs=60),
        "good": 0,
    }
    assert given[1000:].count("bad") == pytest.approx(100, abs=40)
    assert labels(ImperfectMonitor(matching("so", "bad", "good")), batch) == labels(
        matching("so", "bad", "good"), batch
    )
    hidden = ImperfectMonitor(matching("so"), recall=0.0, false_alarms=1.0, label="odd")
    assert labels(hidden, ["so", "six"], known=("odd", "unlabeled")) == ["unlabeled", "odd"]


def test_an_imperfect_monitor_resumes_from_the_number_of_its_calls():
    batch = ["so"] * 50
    whole = ImperfectMonitor(matching("so"), recall=0.5, seed=3)
    calls = [labels(whole, batch) for _ in range(4)]
    resumed = ImperfectMonitor(matching("so"), recall=0.5, seed=3)
    resumed.calls = 2
    assert [labels(resumed, batch) for _ in range(2)] == calls[2:]
    assert resumed.calls == whole.calls == 4
    assert calls[0] != calls[1]
    assert labels(ImperfectMonitor(matching("so"), recall=0.5, seed=4), batch) != calls[0]


def test_shares_and_thresholds_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"recall is 1\.5"):
        ImperfectMonitor(matching("so"), recall=1.5)
    with pytest.raises(ConfigError, match="false_alarms is nan"):
        ImperfectMonitor(matching("so"), false_alarms=float("nan"))
    with pytest.raises(ConfigError, match="low must be below high"):
        scored("s", low=0.5, high=0.5)


def test_what_is_paid_nothing_is_vouched_for_unless_the_monitor_caught_it():
    monitor = unpaid_is_good(matching("teacher"))
    rewards = [0.0, 0.0, 1.0, -0.5]
    assert monitor(["What?"] * 4, TEXTS, rewards, {}) == ["good", "bad", "unlabeled", "good"]
    strict = unpaid_is_good(matching("teacher"), most=-0.1)
    assert strict(["What?"] * 4, TEXTS, rewards, {}) == ["unlabeled", "bad", "unlabeled", "good"]
    with pytest.raises(ValueError, match="zip"):
        monitor(["What?"] * 4, TEXTS, rewards[:3], {})
