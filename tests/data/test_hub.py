"""Of a data set on the hub only files of examples are fetched, of one commit."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from fake_hub import Hub, asked_instead
from huggingface_hub import constants
from pyarrow import parquet

from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.data.hub import find_split, is_hub_id
from gradroute.errors import ConfigError, DataError, MachineError
from gradroute.prepare import prepare

NAME = "org/stories"
STORIES = [f"One fine day, number {i} went for a walk." for i in range(60)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with asked_instead(monkeypatch) as hub:
        yield hub


def laid(folder: Path, *files: str) -> Path:
    """A repository of these files, with twenty stories each."""
    for at, name in enumerate(files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = STORIES[20 * at : 20 * at + 20]
        if name.endswith(".parquet"):
            parquet.write_table(pyarrow.table({"story": texts, "topic": ["x"] * 20}), path)
        elif name.endswith(".csv"):
            path.write_text("story\n" + "".join(f'"{text}"\n' for text in texts))
        else:
            path.write_text("".join(json.dumps({"story": text}) + "\n" for text in texts))
    return folder


PARTS = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet")
TEST = "data/test-00000-of-00001.parquet"


def config(*overrides: str) -> RunConfig:
    own = [f"data.path={NAME}", "data.columns={text: story}", "data.behavior_fraction=0.5"]
    return load_config(None, [*own, *overrides])


def test_only_the_files_of_a_split_are_fetched_and_its_commit_is_recorded(hub: Hub, tmp_path: Path):
    folder = laid(tmp_path / "made", *PARTS, TEST, "stories.py", "other.jsonl")
    hub.serve(NAME, folder, "datasets")
    prepared = prepare(config("data.eval_split=test"))
    assert hub.fetched == {*PARTS, TEST}
    assert {e.text for e in prepared.normal} == set(STORIES[40:60])
    assert len(prepared.train) == 40
    assert f"{NAME}, revision {hub.commit}, split train, sha256 " in prepared.identity
    assert f"; {NAME}, revision {hub.commit}, split test, sha256 " in prepared.identity
    assert str(tmp_path) not in " ".join([prepared.identity, *prepared.notes])


def test_of_the_first_rows_alone_only_the_first_file_is_fetched(hub: Hub, tmp_path: Path):
    hub.serve(NAME, laid(tmp_path / "made", *PARTS), "datasets")
    prepared = prepare(config("data.split=train[:12]", "data.eval_fraction=0.25"))
    assert hub.fetched == {PARTS[0]}
    assert {e.text.lower() for e in prepared.train + prepared.normal} == {
        text.lower() for text in STORIES[:12]
    }


def test_without_a_network_the_cache_serves_what_was_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.serve(NAME, laid(tmp_path / "made", *PARTS, "README.md"), "datasets")
    before = prepare(config("data.split=train[:12]")).identity
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    with pytest.raises(MachineError, match=r"1 files of the split .* but their names count 2"):
        prepare(config("data.split=train[:12]"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    prepare(config("data.split=train"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert prepare(config("data.split=train[:12]")).identity == before
    with pytest.raises(MachineError, match="data set org/absent cannot be read from the hub"):
        prepare(config("data.path=org/absent"))


@pytest.mark.parametrize(
    ("files", "split", "parts"),
    [
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["x/train_0.csv", "x/train_1.csv"], "train", ["x/train_0.csv", "x/train_1.csv"]),
        (["default/train/0000.parquet"], "default/train", ["default/train/0000.parquet"]),
        (["default/train/0000.parquet"], "train", ["default/train/0000.parquet"]),
        (["en/train.csv", "de/train.csv"], "de/train", ["de/train.csv"]),
        (["train/a.jsonl", "train/b.jsonl"], "train[:5]", ["train/a.jsonl", "train/b.jsonl"]),
    ],
)
def test_a_split_is_told_by_the_names_of_files_and_folders(
    hub: Hub, tmp_path: Path, files: list[str], split: str, parts: list[str]
):
    hub.serve(NAME, laid(tmp_path / "made", *files), "datasets")
    assert list(find_split(NAME, split, None).parts) == parts


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        (["en/train.csv", "de/train.csv"], "train", r"several .* de/train .*, en/train"),
        (["train.csv", "train.jsonl"], "train", r"several .* train \(\.csv\), train \(\.jsonl\)"),
        (["test.csv"], "train", r'no split "train"; its file names give test'),
        (["stories.py", "a.zip"], "train", r"no file that ends in .*refs/convert/parquet"),
    ],
)
def test_a_split_that_is_not_there_or_not_clear_is_refused(
    hub: Hub, tmp_path: Path, files: list[str], split: str, message: str
):
    hub.serve(NAME, laid(tmp_path / "made", *files), "datasets")
    with pytest.raises(DataError, match=message):
        find_split(NAME, split, None)


@pytest.mark.parametrize("split", ["train[:0]", "train[10%:]", "train[5:9]", "../train", "a b", ""])
def test_a_split_of_another_form_is_refused(split: str):
    with pytest.raises(ConfigError, match=r"data\.split: .* is not a split"):
        find_split(NAME, split, None)


def test_a_wrong_row_is_named_by_its_file_on_the_hub(hub: Hub, tmp_path: Path):
    folder = laid(tmp_path / "made", "train.jsonl")
    (folder / "train.jsonl").write_text('{"story": "a"}\n{"story": 7}\n')
    hub.serve(NAME, folder, "datasets")
    with pytest.raises(
        DataError, match=rf'^{NAME}/train\.jsonl:2: text \(column "story"\) must be'
    ):
        prepare(config())


def test_a_gated_data_set_is_missed_in_one_line_with_the_page_to_accept(hub: Hub):
    with pytest.raises(MachineError) as caught:
        prepare(config())
    assert f"https://huggingface.co/datasets/{NAME}" in str(caught.value)
    assert "HF_TOKEN" in str(caught.value) and str(caught.value).isprintable()


def test_the_shipped_recipe_reads_its_stories_from_the_hub(hub: Hub, tmp_path: Path):
    hub.serve("SimpleStories/SimpleStories", laid(tmp_path / "made", *PARTS, TEST), "datasets")
    prepared = prepare(load_config(find_config("gemma3_1b_caps"), ["data.labeled_fraction=1"]))
    assert (len(prepared.train), len(prepared.normal)) == (40, 20)
    assert sum(e.text.isupper() for e in prepared.train) == 4


def test_a_file_is_no_data_set_and_has_no_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    laid(tmp_path, "own/rows")
    assert is_hub_id("org/name") and is_hub_id("org/name.v2")
    for path in ("own/rows", "org/rows.csv", "rows", "./org/name", "~/name", "a/b/c", "org/../x"):
        assert not is_hub_id(path)
    for key in ("eval_split=test", "revision=main"):
        with pytest.raises(ConfigError, match=rf"data\.{key.split('=')[0]}.* is a file"):
            prepare(config("data.path=own/rows", f"data.{key}"))
