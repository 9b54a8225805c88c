"""`export`, `audit-adapter` and `purge` as a user meets them."""

import pytest

from benchmarks.exports import short_run
from gradroute.cli.main import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    short_run(root, "llama")
    return root


def verb(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.filterwarnings("ignore:checkpoint .* is skipped:UserWarning")
def test_a_run_is_exported_audited_and_purged(runs, tmp_path, capsys):
    own = ("llama", "--runs", runs)
    kept = ("--keep", "good", "--format", "peft", "--no-eval")
    code, out, err = verb(capsys, "export", *own, *kept, "--out", tmp_path / "shipped")
    assert code == 0 and "passed  bytes: scanned 6 files" in out and ": 0 bytes of bad" in out
    assert f"written: {tmp_path / 'shipped'}" in out and "gradroute purge" in err
    code, out, err = verb(capsys, "export", *own, *kept, "--out", tmp_path / "shipped")
    assert code == 2 and "is not empty" in err and "Traceback" not in err
    code, out, err = verb(capsys, "audit-adapter", *own, "--out", tmp_path / "audit")
    assert code == 0 and "CONTAINS EVERYTHING" in err
    code, out, err = verb(capsys, "purge", *own)
    assert code == 0 and "llama: 4 files" in out
    code, out, err = verb(capsys, "purge", *own, "--delete")
    assert code == 2 and "--delete --yes" in err
    code, out, err = verb(capsys, "purge", *own, "--delete", "--yes")
    assert code == 0 and "deleted: 3 files of bad" in out
    code, out, err = verb(capsys, "export", *own, *kept, "--out", tmp_path / "again")
    assert code == 4 and "damaged" in err and not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--keep", "good", "--out", "x"), "--format"),
        (("--keep", "good", "--format", "gguf", "--out", "x"), "gguf"),
        (("--keep", "good,", "--format", "peft", "--out", "x"), "names with commas"),
        (("--keep", "good", "--format", "peft", "--out", "x", "--dtype", "int8"), "int8"),
    ],
)
def test_a_wrong_command_line_is_one_that_names_the_option(runs, capsys, words, said):
    with pytest.raises(SystemExit) as ended:
        main(["export", "llama", "--runs", str(runs), *words])
    assert ended.value.code == 2 and said in capsys.readouterr().err
