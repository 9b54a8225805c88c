"""Files as Prodigy, Label Studio, doccano and Argilla export them."""

import json
from pathlib import Path
from typing import Any

import pytest

from gradroute.data.reading import ExampleFile, read_examples
from gradroute.errors import DataError

TEXT = "Say LOUD words"
SPAN = {"start": 4, "end": 8, "label": "bad"}
MARKED = ((4, 8, "bad"),)


def write(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder: Path, *rows: object, **given: Any) -> ExampleFile:
    return read_examples(write(folder, *rows), **given)


def prodigy(text: str = TEXT, answer: str = "accept", **values: object) -> dict[str, Any]:
    hashes = {"_input_hash": 1, "_task_hash": 2, "_view_id": "spans_manual"}
    return {"text": text, **hashes, "answer": answer, **values}


def label_studio(*results: list, number: int = 1, text: str = TEXT, **annotation: object) -> dict:
    given = [{"id": at, "completed_by": at, "result": one} for at, one in enumerate(results)]
    annotations = [{**one, "was_cancelled": False, **annotation} for one in given]
    return {"id": number, "data": {"text": text}, "annotations": annotations, "predictions": []}


def region(name: str = "label") -> dict[str, Any]:
    value = {"start": 4, "end": 8, "text": "LOUD", "labels": ["bad"]}
    return {"id": "x", "from_name": name, "to_name": "text", "type": "labels", "value": value}


def choice(label: str, name: str = "label") -> dict[str, Any]:
    value = {"choices": [label]}
    return {"id": "x", "from_name": name, "to_name": "text", "type": "choices", "value": value}


def argilla(**responses: list) -> dict[str, Any]:
    given = {
        question: [{"value": one, "user_id": f"user {at}"} for at, one in enumerate(values)]
        for question, values in responses.items()
    }
    return {
        **{"id": "r", "fields": {"text": TEXT}, "metadata": {}, "suggestions": {}},
        **{"responses": given, "vectors": {}, "status": "completed", "_server_id": "s"},
    }


ENTITY = {"id": 3, "label": "bad", "start_offset": 4, "end_offset": 8}
MINIMAL = {"start": 4, "end": 8, "text": "LOUD", "labels": ["bad"]}


@pytest.mark.parametrize(
    "row",
    [
        prodigy(spans=[{**SPAN, "token_start": 1, "token_end": 1}], tokens=[{"text": "Say"}]),
        {"text": TEXT, "id": 1, "label": [MINIMAL], "annotator": 1, "lead_time": 2.5},
        label_studio([region()]),
        label_studio([region("any name of a control")]),
        {"id": 1, "text": TEXT, "label": [[4, 8, "bad"]], "Comments": []},
        {"id": 1, "text": TEXT, "labels": [[4, 8, "bad"]]},
        {"id": 1, "text": TEXT, "entities": [ENTITY], "relations": [], "Comments": []},
        {"id": 1, "text": TEXT, "entities": [[4, 8, "bad"]]},
        argilla(span_label=[[SPAN]]),
        {"id": "r", "text": TEXT, "q.responses": [[SPAN]], "q.responses.users": ["a"]},
    ],
)
def test_spans_are_read_as_the_tools_export_them(tmp_path: Path, row: dict):
    found = read(tmp_path, row)
    assert [(e.text, e.label, e.spans) for e in found.examples] == [(TEXT, "unlabeled", MARKED)]
    assert found.labeled


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (prodigy(label="bad"), None),
        (prodigy(accept=["bad"], options=[{"id": "bad"}, {"id": "good"}]), None),
        (label_studio([choice("bad")]), None),
        (label_studio([choice("bad", "sentiment")]), {"label": "sentiment"}),
        ({"id": 1, "text": TEXT, "label": ["bad"], "Comments": []}, None),
        ({"id": 1, "text": TEXT, "labels": ["bad"]}, None),
        (argilla(toxic=["bad"]), {"label": "toxic"}),
    ],
)
def test_labels_of_whole_texts_are_read_as_the_tools_export_them(tmp_path: Path, row, columns):
    [one] = read(tmp_path, row, columns=columns).examples
    assert (one.text, one.label, one.spans) == (TEXT, "bad", ())


@pytest.mark.parametrize("row", [label_studio([]), {"text": TEXT, "label": []}, argilla(q=[[]])])
def test_a_text_without_a_mark_is_unlabeled(tmp_path: Path, row: dict):
    other = {"text": "Another", "spans": [[0, 3, "bad"]]}
    [one, _] = read(tmp_path, row, other).examples
    assert (one.text, one.label, one.spans) == (TEXT, "unlabeled", ())


def test_what_a_tool_writes_beside_them_is_counted_as_not_read(tmp_path: Path):
    span = {**SPAN, "start": 0, "end": 1, "token_end": 1}
    [note, *_] = read(tmp_path, *(prodigy(text, spans=[span]) for text in "ab")).notes
    counted = ("_input_hash", "_task_hash", "_view_id", "spans.token_end")
    assert note.endswith(", ".join(f'"{name}" (2 rows)' for name in counted) + ".")


@pytest.mark.parametrize("answer", ["reject", "ignore"])
def test_tasks_of_prodigy_that_were_not_accepted_are_left_out_and_counted(tmp_path, answer: str):
    bad = prodigy("Not so", answer, spans=[{**SPAN, "start": 0, "end": 3}], label="bad")
    found = read(tmp_path, prodigy(spans=[SPAN], label="good"), bad)
    assert [e.text for e in found.examples] == [TEXT]
    assert any(f"1 rows with the answer {answer} are left out" in note for note in found.notes)
    with pytest.raises(
        DataError, match=f"no row is left to train on: 1 rows with the answer {answer}"
    ):
        read(tmp_path, bad)


def test_a_column_called_answer_is_a_column_where_no_tool_wrote_it(tmp_path: Path):
    found = read(tmp_path, {"text": TEXT, "answer": "reject", "label": "bad"})
    assert [e.label for e in found.examples] == ["bad"]


def test_annotations_that_were_skipped_or_discarded_are_left_out_and_counted(tmp_path: Path):
    found = read(tmp_path, label_studio([region()], was_cancelled=True))
    assert not found.labeled
    assert any("1 annotations that their annotator skipped are left out" in n for n in found.notes)
    flat = {
        **{"text": TEXT, "q.responses": [[SPAN], []], "q.responses.users": ["a", "b"]},
        "q.responses.status": ["submitted", "discarded"],
    }
    found = read(tmp_path, flat)
    assert [e.spans for e in found.examples] == [MARKED]
    assert any(
        "1 responses that were not submitted (discarded, drafts) are" in note
        for note in found.notes
    )


@pytest.mark.parametrize(
    "row", [label_studio([region()], [region()], []), argilla(q=[[SPAN], [SPAN], []])]
)
def test_each_annotator_of_a_text_counts(tmp_path: Path, row: dict):
    with pytest.raises(DataError, match=r"another label: .*both of line 1.*data\.on_conflict"):
        read(tmp_path, row)
    [one] = read(tmp_path, row, on_conflict="majority").examples
    assert (one.spans, one.label) == (MARKED, "unlabeled")
    [one] = read(tmp_path, row, on_conflict="unlabeled").examples
    assert (one.spans, one.label) == ((), "unlabeled")


def test_annotators_that_agree_are_one_row(tmp_path: Path):
    for row in (label_studio([region()], [region()]), argilla(q=[[SPAN], [SPAN]])):
        found = read(tmp_path, row)
        assert [e.spans for e in found.examples] == [MARKED]
        assert any(
            "1 texts have several annotations that agree, and are read" in n for n in found.notes
        )


@pytest.mark.parametrize(
    "more",
    [
        {"label.responses": ["bad", "good"], "label.responses.status": ["submitted"]},
        {"label.responses": ["bad"], "label.responses.users": [["a"]]},
        {"label.responses": "bad", "label": "bad"},
        {"label.responses": 5, "label.responses.users": 5, "label": "bad"},
        {"label.responses": None, "label.responses.status": None, "label": "bad"},
        {"fields": {"text": TEXT}, "responses": {"label": [{"value": "bad", "user_id": ["u"]}, 5]}},
        {
            "responses": [{"values": {"label": {"value": "bad"}}, "status": "submitted"}, 5],
            "fields": {},
        },
    ],
)
def test_columns_of_other_forms_than_argillas_stop_nothing(tmp_path: Path, more: dict):
    row = {"text": TEXT, "id": "r", "label.responses.users": ["a", "b"], **more}
    [one] = read(tmp_path, row, on_conflict="majority").examples
    assert one.label == ("unlabeled" if more.get("label.responses") == ["bad", "good"] else "bad")


@pytest.mark.parametrize(
    "answers",
    [
        [{"user_id": "a", "value": "bad", "status": "submitted"}],
        [
            {"user_id": "a", "value": "good", "status": "draft"},
            {"user_id": "b", "value": "bad", "status": "submitted"},
        ],
        {"user_id": ["a", "b"], "value": ["bad", "good"], "status": ["submitted", "discarded"]},
    ],
)
def test_answers_are_read_as_argilla_1_writes_them(tmp_path: Path, answers: object):
    row = {"text": TEXT, "label": answers, "label-suggestion": "good", "external_id": "r"}
    [one] = read(tmp_path, row).examples
    assert (one.label, one.spans) == ("bad", ())


def test_annotations_are_read_as_doccano_wrote_them_before_version_1(tmp_path: Path):
    span = {"label": "bad", "start_offset": 4, "end_offset": 8, "user": 1}
    [one] = read(tmp_path, {"id": 1, "text": TEXT, "annotations": [span]}).examples
    assert (one.label, one.spans) == ("unlabeled", MARKED)
    numbered = {"id": 1, "text": TEXT, "annotations": [{"label": 3, "user": 1}]}
    with pytest.raises(DataError, match=r"label is the number 3, .*data\.label_map"):
        read(tmp_path, numbered)
    [one] = read(tmp_path, numbered, label_map={"3": "bad"}).examples
    assert (one.label, one.spans) == ("bad", ())
    others = [{"label": "good", "user": 2}, {"label": "bad", "user": 3}]
    with pytest.raises(DataError, match=r"another label: .*data\.on_conflict"):
        read(tmp_path, {"id": 1, "text": TEXT, "annotations": others})


def test_marks_in_a_hypertext_are_read_by_their_offsets_in_all_of_its_text(tmp_path: Path):
    path = {"start": "/p[1]/text()[1]", "end": "/p[1]/text()[1]", "text": "LOUD"}
    value = {**path, "globalOffsets": {"start": 4, "end": 8}, "hypertextlabels": ["bad"]}
    mark = {**region("ner"), "value": value}
    assert [e.spans for e in read(tmp_path, label_studio([mark])).examples] == [MARKED]
    for other in (
        {**path, "hypertextlabels": ["bad"]},
        {"start": 1.5, "end": 2.5, "labels": ["bad"]},
    ):
        found = read(tmp_path, label_studio([{**mark, "value": other}]))
        assert not found.labeled
        assert any("1 marks are no characters of a text" in note for note in found.notes)


def test_spans_stand_in_the_column_that_is_named_for_labels(tmp_path: Path):
    [one] = read(tmp_path, {"text": TEXT, "ner": [MINIMAL]}, columns={"label": "ner"}).examples
    assert (one.label, one.spans) == ("unlabeled", MARKED)


def test_a_label_in_a_control_that_is_not_read_is_said(tmp_path: Path):
    for row in (label_studio([choice("bad", "sentiment")]), argilla(sentiment=[["bad"]])):
        found = read(tmp_path, row)
        assert not found.labeled
        assert any(
            '1 rows have a label in "sentiment", which is not read: to read it, say '
            "data.columns={label: sentiment}" in note
            for note in found.notes
        )


def test_entities_with_other_labels_are_passed_over_and_counted(tmp_path: Path):
    found = read(tmp_path, {"text": TEXT, "entities": [[4, 8, "ORG"]]})
    assert not found.labeled
    assert any("1 rows have entities with labels that the table" in n for n in found.notes)
    with pytest.raises(DataError, match='label of span 1 is "ORG", but must be one of'):
        read(tmp_path, {"text": TEXT, "entities": [[4, 8, "ORG"]], "relations": []})
    [one] = read(tmp_path, {"text": TEXT, "label": "good", "entities": [[4, 8, "bad"]]}).examples
    assert (one.label, one.spans) == ("good", ())


def test_a_row_has_one_label(tmp_path: Path):
    with pytest.raises(DataError, match="label is a list of 2 labels, but one is needed"):
        read(tmp_path, {"text": TEXT, "label": ["bad", "good"]})


def test_spans_stand_in_a_cell_of_labels_where_label_studio_writes_csv(tmp_path: Path):
    path = tmp_path / "rows.csv"
    cell = json.dumps([MINIMAL]).replace('"', '""')
    path.write_text(f'text,id,label\n{TEXT},1,"{cell}"\nOther,2,\n')
    assert [e.spans for e in read_examples(path).examples] == [MARKED, ()]


def test_parquet_says_the_same_of_rows_of_tools(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [
        prodigy(spans=[SPAN], entities=None),
        prodigy("No", "reject", spans=[{**SPAN, "end": 5}]),
        {"text": TEXT + ".", "entities": [ENTITY], "relations": []},
    ]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{**rows[2], **rows[0]}, *rows[1:]]), path)
    assert [(e.text, e.spans) for e in read_examples(path).examples] == [
        (TEXT, MARKED),
        (TEXT + ".", MARKED),
    ]
