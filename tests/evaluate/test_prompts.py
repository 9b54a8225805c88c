"""A user's prompts: one per line, taken as they are, or one sentence about why not."""

from pathlib import Path

import pytest

from gradroute.errors import DataError
from gradroute.evaluate.generation import Prompt
from gradroute.evaluate.prompts import read_prompts


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    return path


def test_every_line_is_a_prompt_as_it_is_and_named_by_its_line(tmp_path: Path) -> None:
    content = "  once upon\ta \n\nTHE <b>END</b>\u2028still the same line\x0c\r\n \t\nlast".encode()
    file = read_prompts(written(tmp_path, content))
    assert [(prompt.id, prompt.text) for prompt in file.prompts] == [
        ("line-1", "  once upon\ta "),
        ("line-3", "THE <b>END</b>\u2028still the same line\x0c"),
        ("line-5", "last"),
    ]
    assert (file.kind, file.blank) == ("file:mine.txt", 2)


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path: Path) -> None:
    file = read_prompts(written(tmp_path, b"\xef\xbb\xbfhello\n"))
    assert [prompt.text for prompt in file.prompts] == ["hello"]
    assert file.blank == 0


def test_another_content_is_another_file(tmp_path: Path) -> None:
    one = read_prompts(written(tmp_path, b"a\n")).sha256
    assert one == read_prompts(written(tmp_path, b"a\n")).sha256
    assert one != read_prompts(written(tmp_path, b"b\n")).sha256


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no prompt"),
        (b" \n\n\t\n", "holds no prompt"),
        (b"a\nb\xff\n", "mine.txt:2.*UTF-8"),
    ],
)
def test_a_file_without_a_usable_prompt_is_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read_prompts(written(tmp_path, content))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no file of prompts .*nowhere.*prefix, plain, held_out_bad or bos"
    ):
        read_prompts(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path)


def test_json_lines_are_read_with_the_names_of_their_noise_and_each_prompt_once(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pins.jsonl"
    path.write_text(
        '{"id": "prefix-0", "prompt": "A\\nB", "columns": []}\n'
        '{"id": "prefix-0", "prompt": "A\\nB", "seed": 3}\n'
        '{"id": "prefix-0", "prompt": "another"}\n'
        '{"prompt": ""}\n{"prompt": "<u>x", "templated": true, "follows": "y"}\n'
    )
    file = read_prompts(path)
    assert file.prompts == [
        Prompt("prefix-0", "A\nB"),
        Prompt("line-3", "another"),
        Prompt("line-4", ""),
        Prompt("line-5", "<u>x", True, "y"),
    ]
    assert file.kind == "file:pins.jsonl"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a"}', "jsonl:1.*a prompt is needed"),
        ('{"prompt": "a", "id": 3}', "jsonl:1.*texts too"),
        ('{"prompt": "a", "templated": 1}', "jsonl:1.*true or false, got the number 1"),
        ('["a"]', "jsonl"),
        ("\n", "holds no prompt"),
    ],
)
def test_json_lines_without_a_usable_prompt_are_refused(
    tmp_path: Path, line: str, words: str
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=words):
        read_prompts(path)
