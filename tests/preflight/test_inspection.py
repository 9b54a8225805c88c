"""`data inspect` shows what training sees, and no row can speak to the terminal."""

import json
import re

import pytest

from gradroute.cli.main import main
from gradroute.config.run_config import load_config
from gradroute.data.examples import Example, Span
from gradroute.preflight import inspection
from gradroute.preflight.inspection import inspect_rows, wants_color
from gradroute.prepare import prepare

OVERRIDES = ("data.train_examples=30", "evaluate.held_out=4", "evaluate.prompts=4")
EXAMPLES = [
    Example("spans", "The fox RAN AWAY.", "Say: ", spans=(Span(8, 16, "bad"),), weight=2.0),
    Example("turns", "Hi there. And you? Well.", label="good", context=((9, 18),)),
    Example("evil", "a\x1b[31mb\nc\u202ed", label="bad", true_label="bad"),
    Example("long", "x", "y " * 400, label="bad", true_label="bad"),
]


@pytest.fixture
def lines(monkeypatch):
    """The lines that are shown of the examples above."""

    def shown(**asked):
        config = load_config(None, OVERRIDES)
        prepared = prepare(config)
        monkeypatch.setattr(
            inspection,
            "prepare",
            lambda config: type(prepared)(**{**vars(prepared), "train": EXAMPLES}),
        )
        options = {"count": 3, "ids": [], "label": None, "color": False} | asked
        return list(inspect_rows(config, **options))

    return shown


def test_every_token_is_shown_under_the_label_that_it_is_learned_under(lines):
    text = "\n".join(lines())
    assert "[no loss: <bos>Say:]" in text.replace("][no loss: ", "")
    assert "[unlabeled:  The fox][bad:  RAN AWAY][unlabeled: .]" in text
    assert "spans: label unlabeled, true label good, weight 2, " in text
    assert re.search(r"\[good: Hi there\.\]\[no loss:  And you\?\]\[good:  Well\.\]", text)
    assert "[unlabeled: <eos>]" in text  # what is special is a run of its own


def test_a_row_that_nothing_is_left_of_is_shown_as_such_and_all_is_counted(lines):
    text = "\n".join(lines())
    assert "long: label bad, true label bad; left out: no token of its text is left" in text
    assert "4 training rows: 2 bad labeled bad, 1 good labeled good, 1 good labeled unl" in text
    tokens, targets = map(int, re.findall(r"(\d+) tokens, (\d+) of them targets:", text)[0])
    shown = re.findall(r"(\d+) tokens, (\d+) of them targets \(", text)
    assert (tokens, targets) == tuple(sum(int(row[at]) for row in shown) for at in (0, 1))
    assert "1 of 4 examples were left out: no token of their text remained." in text


def test_a_legend_says_what_the_table_does_under_each_label(lines):
    text = "\n".join(lines())
    assert "routes of the table 'anchored' at the position that predicts a token:" in text
    assert re.search(r"bad +good freeze, bad update\n +unlabeled +good update, bad update", text)


@pytest.mark.parametrize("color", [False, True])
def test_nothing_in_a_row_reaches_the_terminal_as_a_command(lines, color):
    text = "\n".join(lines(color=color))
    assert r"a\x1b[31mb\nc\u202ed" in text
    own = re.sub(r"\x1b\[[0-9;]*m", "", text) if color else text
    assert all(character.isprintable() or character == "\n" for character in own)


def test_colors_tell_the_labels_apart_and_end_where_they_should(lines):
    text = "\n".join(lines(color=True, ids=["spans"]))
    assert "\x1b[36m The fox\x1b[0m\x1b[31m RAN AWAY\x1b[0m\x1b[36m.\x1b[0m" in text
    assert "\x1b[36;7m<eos>\x1b[0m" in text and "\x1b[2;7m<bos>\x1b[0m" in text
    assert "[bad:" not in text


def test_rows_are_chosen_by_id_by_label_or_some_of_each(lines):
    def named(**asked):
        return [line.split(":")[0] for line in lines(**asked) if ": label " in line]

    assert named(ids=["evil", "spans"]) == ["evil", "spans"]
    assert named(label="bad") == ["spans", "evil", "long"]  # a row with bad tokens too
    assert named(count=1) == ["spans", "turns", "evil"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--label", "rude"], "--label rude: the routing table has no such row; its labels are b"),
        (["--ids", "tune-0-1,nobody"], "there is no training row 'nobody'"),
        (["--ids", "tune-0-1", "--label", "bad"], "no training row 'tune-0-1' with the label bad"),
        (["data.max_length=two"], "data.max_length"),
        (["model=./nowhere"], "model: there is no folder './nowhere'"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_sentence(asked, message, capsys):
    assert main(["data", "inspect", "caps", *OVERRIDES, *asked]) == 2
    assert message in capsys.readouterr().err


def test_the_verb_prints_brackets_into_a_pipe_and_loads_no_weights(capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights are not needed")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    arguments = ["data", "inspect", "caps", "--rows", "1", *OVERRIDES, "data.max_length=16"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "[no loss: <bos>][bad: " in out and "\x1b" not in out
    assert "as many as data.max_length allows" in out


def test_a_row_of_ones_own_file_is_shown(tmp_path, capsys):
    rows = [{"id": f"r{at}", "text": f"number {at}", "label": "bad"} for at in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    own = ["own", "model=embedded", f"data.path={path}"]
    assert main(["data", "inspect", *own, "--rows", "1"]) == 0
    assert "bad: number" in capsys.readouterr().out


def test_colors_come_on_a_terminal_only_and_never_against_the_users_will(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_color(True) and not wants_color(False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_color(True)
    monkeypatch.setenv("NO_COLOR", "")
    assert wants_color(True)
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_color(True)
