"""`find` and `refine` as a user meets them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_runs import TWO, tiny_run

from gradroute.cli.main import main
from gradroute.config.run_config import dump_config, find_config, load_config
from gradroute.prepare import prepare
from gradroute.runs.folder import RunFolder

KNOWN = ("data.train_examples=160", "data.good_labeled_fraction=0.6", "data.null_fraction=0.5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    tiny_run(root, "routed", *TWO, *KNOWN)
    tiny_run(root, "flat", *TWO, *KNOWN, "routing=none")
    tiny_run(root, "routed-none", *TWO, *KNOWN, "routing=none", "control=none")
    return root


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture
def verb(runs: Path, capsys: pytest.CaptureFixture[str]):
    def run(*words: object) -> tuple[int, str, str]:
        code = main([*(str(word) for word in words), "--runs", str(runs)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def rows_file(path: Path, *rows: Mapping[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_a_file_are_scored_in_place_of_the_runs_own(runs: Path, tmp_path: Path, verb):
    trained_on = prepare(load_config(RunFolder(runs / "routed").config)).train[:2]
    file = rows_file(
        tmp_path / "new rows.jsonl",
        *({"text": f"THE FOX SAW {n} BIRDS AND RAN."} for n in range(9)),
        *({"prompt": e.prompt, "text": e.text} for e in trained_on),
    )
    code, out, _ = verb("find", "routed", file, "--by", "words", "--fdr", "0.5")
    assert code == 0
    assert "of 11 unlabeled rows of new rows.jsonl look like bad by words; at most 50 %" in out
    assert out.count("2 of 11 rows were trained on; their scores are those of training rows.") == 1
    (place,) = (one for one in (runs / "routed" / "found").iterdir() if one.is_dir())
    assert place.name.startswith("new rows-")
    lines = [json.loads(x) for x in (place / "words_scores.jsonl").read_text().splitlines()]
    assert sum(line["text"].startswith("THE FOX") for line in lines) == 9 == len(lines) - 2
    assert sum(map(len, json.loads((place / "words.json").read_text())["notes"])) > 0
    assert (place / "words.html").is_file() and not (place.parent / "words.json").exists()
    code, again, err = verb("find", "routed", file, "--by", "words", "--fdr", "0.5")
    assert (code, again) == (0, out) and "scoring" not in err


def test_labeled_rows_of_a_file_are_not_tested_and_the_adapter_is_the_default(
    runs: Path, tmp_path: Path, verb
):
    file = rows_file(
        tmp_path / "rows.jsonl",
        {"text": "A KNOWN ONE RAN.", "label": "bad", "id": "1"},
        {"text": "a good one ran.", "label": "good", "id": "2"},
        *({"text": f"the cat had {n} hats", "label": "unlabeled", "id": f"{n}"} for n in (0, 3, 4)),
    )
    code, out, _ = verb("find", "routed", file)
    assert code == 0
    assert "of 3 unlabeled rows of rows.jsonl look like bad by adapter; at most 5 %" in out
    assert out.count("2 of 5 rows have a label and are not tested.") == 1
    (path,) = (runs / "routed" / "found").glob("rows-*/adapter_scores.jsonl")
    lines = [json.loads(x) for x in path.read_text().splitlines()]
    assert {line["id"] for line in lines} == {"0", "3", "4"}
    for line in lines:
        assert "".join(text for text, _ in line["tokens"]).startswith("the cat had")


def test_scores_of_a_file_do_not_depend_on_ids_that_the_run_has_too(
    runs: Path, tmp_path: Path, verb
):
    prepared = prepare(load_config(RunFolder(runs / "routed").config))
    scores = []
    for name in ("a", "b"):
        ids = [e.id for e in prepared.null] if name == "b" else ["x", "y"]
        texts = ("THE CAT RAN", "the cat ran")
        file = rows_file(
            tmp_path / f"{name}.jsonl",
            *({"text": text, "id": id} for text, id in zip(texts, ids, strict=False)),
        )
        assert verb("find", "routed", file)[0] == 0
        (path,) = (runs / "routed" / "found").glob(f"{name}-*/adapter_scores.jsonl")
        lines = [json.loads(x) for x in path.read_text().splitlines()]
        scores.append([(line["text"], line["score"], line["p"]) for line in lines])
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        ("", 3, "the file is empty"),
        (None, 3, "does not exist"),
        ('{"text": "a", "label": "bad"}\n', 3, "no row is unlabeled as a whole; nothing to find"),
        ('{"text": "a", "label": "odd"}\n', 3, "odd"),
        ('{"prompt": "a"}\n', 3, "text"),
    ],
)
def test_a_file_that_cannot_be_scored_is_refused_in_a_sentence(
    runs: Path, tmp_path: Path, verb, content: str | None, code: int, said: str
):
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    found, out, err = verb("find", "routed", file, "--by", "words")
    assert (found, out) == (code, "") and said in err and "rows.jsonl" in err
    assert not (runs / "routed" / "found").exists()


@pytest.mark.parametrize("share", ["0", "1", "5", "few"])
def test_a_false_discovery_rate_lies_between_0_and_1(runs: Path, verb, capsys, share: str):
    with pytest.raises(SystemExit) as ended:
        verb("find", "routed", "--fdr", share)
    assert ended.value.code == 2 and "above 0 and below 1" in capsys.readouterr().err


def test_a_behavior_that_the_run_lacks_or_does_not_name_is_a_wrong_question(runs: Path, verb):
    code, _, err = verb("find", "routed", "--behavior", "worse")
    assert code == 2 and "there is no behavior 'worse'; this run has bad." in err
    two = load_config(find_config("two_behaviors"), ["run_name=routed"])
    RunFolder(runs / "routed").config.write_text(dump_config(two))
    first, second = two.behaviors
    for name in ("find", "refine"):
        code, _, err = verb(name, "routed")
        assert code == 2 and f"has the behaviors {first}, {second}; name one: --behavior" in err


@pytest.mark.parametrize("name", ["flat", "routed-none"])
def test_only_a_routed_run_is_refined(runs: Path, verb, name: str):
    code, _, err = verb("refine", name)
    assert code == 2 and f"run {name} does not route" in err and "refine a routed run" in err
    assert not (runs / f"{name}-refined").exists()


def test_a_run_that_is_not_there_or_not_finished_is_refused(runs: Path, verb):
    assert verb("find", "nowhere")[0] == 2
    shutil.rmtree(RunFolder(runs / "routed").checkpoints)
    assert verb("find", "routed")[0] == 4


def test_a_page_that_was_deleted_is_made_again_from_the_files(runs: Path, verb):
    page = runs / "routed" / "found" / "adapter.html"
    assert verb("find", "routed")[0] == 0
    before = page.read_bytes()
    page.unlink()
    code, _, err = verb("find", "routed")
    assert code == 0 and "scoring" not in err and page.read_bytes() == before
