import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gradroute.config.errors import ORIGINAL_NAMES
from gradroute.config.run_config import (
    AdapterConfig,
    RunConfig,
    TrainConfig,
    config_differences,
    dump_config,
    find_config,
    load_config,
    schema,
)
from gradroute.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_the_defaults_are_those_of_the_original_experiment() -> None:
    config = load_config(None)
    assert config.adapters["good"].rank == 32
    assert config.adapters["bad"].rank == 32
    assert config.data.behavior_fraction == 0.1
    assert config.data.labeled_fraction == 0.5
    assert config.train.max_steps == 1000
    assert config.train.learning_rate == 1e-4
    assert config == RunConfig()


def test_every_key_has_a_help_text() -> None:
    definitions = schema()
    for section in [definitions, *definitions["$defs"].values()]:
        for key, entry in section["properties"].items():
            assert entry.get("description"), key


def test_the_schema_is_json_and_closed_to_unknown_keys() -> None:
    definitions = json.loads(json.dumps(schema()))
    for section in [definitions, *definitions["$defs"].values()]:
        assert section["additionalProperties"] is False


@pytest.mark.parametrize("written_number", ["1e-4", "1E-4", "0.0001", "1.0e-04", ".0001"])
def test_a_number_is_read_as_one_however_it_is_written(tmp_path: Path, written_number: str) -> None:
    path = written(tmp_path, f"train: {{learning_rate: {written_number}}}")
    assert load_config(path).train.learning_rate == 1e-4
    assert load_config(None, [f"train.learning_rate={written_number}"]).train.learning_rate == 1e-4


@pytest.mark.parametrize("name", ["0.1_0.0", "007", "1e5", "no", "null", "2024-01-01", "1.0"])
def test_a_text_is_taken_verbatim(tmp_path: Path, name: str) -> None:
    assert load_config(None, [f"run_name={name}"]).run_name == name
    if name != "null":
        assert load_config(written(tmp_path, f"run_name: {name}")).run_name == name


def test_the_last_override_of_a_key_counts() -> None:
    assert load_config(None, ["seed=1", "seed=2"]).seed == 2


def test_an_override_may_hold_an_equals_sign_and_brackets() -> None:
    assert load_config(None, ["data.path=[a]=b.jsonl"]).data.path == "[a]=b.jsonl"


def test_lists_tables_and_null_are_read_as_yaml_on_the_command_line() -> None:
    config = load_config(
        None,
        [
            "layers=[1, 3]",
            "targets=[q_proj, v_proj]",
            'evaluate.modes=[full, "good=1,bad=0.5"]',
            "routing={bad: {good: freeze, bad: {update: 0.25}}, good: {good: update, bad: ablate}}",
            "adapters.good.clip=null",
            "data.path=null",
        ],
    )
    assert config.layers == [1, 3]
    assert config.targets == ["q_proj", "v_proj"]
    assert config.evaluate.modes == ["full", "good=1,bad=0.5"]
    assert config.routing == {
        "bad": {"good": "freeze", "bad": {"update": 0.25}},
        "good": {"good": "update", "bad": "ablate"},
    }
    assert config.adapters["good"].clip is None
    assert config.data.path is None


def test_a_file_that_names_adapters_names_all_of_them(tmp_path: Path) -> None:
    path = written(tmp_path, "adapters: {solo: {rank: 4}}\nrouting: none")
    assert list(load_config(path).adapters) == ["solo"]


def test_an_override_below_adapters_starts_from_the_default_ones() -> None:
    config = load_config(None, ["adapters.bad.rank=16"])
    assert config.adapters == {"good": AdapterConfig(), "bad": AdapterConfig(rank=16)}


def test_null_removes_an_adapter() -> None:
    config = load_config(None, ["adapters.bad=null", "routing=none"])
    assert list(config.adapters) == ["good"]
    assert "no such adapter to remove" in complaint(None, "adapters.worse=null")


def test_an_override_reaches_into_a_table_that_the_file_gives(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "routing:\n  bad: {good: freeze, bad: update}\n  good: {good: update, bad: ablate}\n",
    )
    routing = load_config(path, ["routing.bad.good=detach"]).routing
    assert isinstance(routing, dict)
    assert routing["bad"] == {"good": "detach", "bad": "update"}


def test_there_is_no_key_below_a_named_table() -> None:
    assert complaint(None, "routing=absorb", "routing.bad.good=detach") == (
        "command line: routing.bad.good: routing is 'absorb', so there is no key below it; "
        "give routing=VALUE."
    )


def test_everything_that_is_wrong_is_named_at_once_with_its_place(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
seed: 1
seed: 2
train:
  max_stepz: 3
  warmup_steps: 2000
routing: anchord
data:
  labeled_fraction: 1.5
  drop: yes
adapters:
  good: {rank: 0}
  bad: {}
""",
    )
    assert complaint(path, "oops", "train.learning_rate=fast").splitlines() == [
        "9 problems:",
        f"  {path}:2: seed is given twice, first on line 1; keep one.",
        "  command line: 'oops' is not of the form key=value.",
        f"  {path}:11: adapters.good.rank: at least 1 is needed, got '0'.",
        f"  {path}:8: data.labeled_fraction: at most 1 is needed, got '1.5'.",
        f"  {path}:9: data.drop: one of none, labeled_bad, true_bad, all_but_good, all_but_bad is "
        "needed, got 'yes'.",
        "  command line: train.learning_rate: a number is needed, got 'fast'.",
        f"  {path}:4: train.max_stepz: there is no such key; did you mean train.max_steps?",
        f"  {path}:6: routing: the routing table 'anchord' does not exist (did you mean "
        "'anchored'?); name one of anchored, absorb, exclusive, separate, none, or write a "
        "table label: {adapter: route}.",
        f"  {path}:5: train.warmup_steps: at most train.max_steps (1000) is needed, got 2000.",
    ]


def test_fields_that_do_not_fit_together_are_named_beside_broken_ones() -> None:
    text = complaint(None, "train.max_steps=10", "train.warmup_steps=20", "sed=1")
    assert "command line: sed: there is no such key; did you mean seed?" in text
    assert "command line: train.warmup_steps: at most train.max_steps (10)" in text


def test_a_broken_field_does_not_make_others_look_broken() -> None:
    text = complaint(None, "train.max_steps=many", "train.warmup_steps=2000")
    assert text == "command line: train.max_steps: a whole number is needed, got 'many'."


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("max_steps", "did you mean train.max_steps?"),
        ("trian.max_steps", "did you mean train?"),
        ("train.warmup", "did you mean train.warmup_steps?"),
        ("adapters.bad.rnk", "did you mean adapters.bad.rank?"),
        ("evaluate.topp", "did you mean evaluate.top_p?"),
        ("data.zzzzz", "the keys of data are path, eval_path, "),
        *((name, f"its name here is {key}.") for name, key in ORIGINAL_NAMES.items()),
    ],
)
def test_an_unknown_key_gets_the_key_that_was_meant(key: str, meant: str) -> None:
    assert meant in complaint(None, f"{key}=1")


def test_the_names_of_the_original_lead_to_keys_that_exist() -> None:
    for key in ORIGINAL_NAMES.values():
        load_config(None, [f"{key}=1"])


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed=1.5", "a whole number is needed, got '1.5'"),
        ("seed=true", "a whole number is needed, got 'true'"),
        ("seed=-1", "at least 0 is needed"),
        ("seed=4294967296", "less than 4.29497e+09 is needed"),
        ("train.max_steps=1e3", "a whole number is needed"),
        ("train.learning_rate=nan", "a number is needed"),
        ("train.learning_rate=.inf", "a number is needed"),
        ("train.learning_rate=0", "more than 0 is needed"),
        ("train.learning_rate=", "a number is needed, got nothing (null)"),
        (
            "data.drop=all",
            "one of none, labeled_bad, true_bad, all_but_good, all_but_bad is needed",
        ),
        ("data.relabel=true", "one of none, random, unlabel_bad is needed"),
        ("controls=[filter, orcale]", "one of none, unrouted_ablated, filter, "),
        ("controls=[filter, filter]", "a control is given twice"),
        ("train.loss_mean=sum", "one of token, example is needed, got 'sum'"),
        ("adapters.good.dropout=1", "less than 1 is needed"),
        ("run_name=../up", "a run's name is"),
        ("run_name=" + "a" * 65, "a run's name is"),
        ("run_name=", "a text is needed"),
        ("model=a\x1bb", "control characters"),
        ("model=a\udc80b", "control characters"),
        ("layers=first-half", "last-half, all, or [first, end]"),
        ("layers=[3, 1]", "last-half, all, or [first, end]"),
        ("targets=[]", "a list such as [a, b] is needed"),
        ("evaluate.modes=full,base", "a list such as [a, b] is needed"),
        ("evaluate.modes=[full", "not YAML"),
        ("evaluate.modes=[bod_ablated]", "names the adapter 'bod'"),
        ("routing={bad: freeze}", "the row 'bad' must give a route per adapter"),
        ("routing={bad: {good: freez, bad: update}}", "'freez'"),
        ("routing={bad: {good: freeze}}", "no route for the adapter bad"),
        ("adapters={}", "at least one entry is needed"),
        ("adapters.full={}", "an adapter's name is"),
        ("adapters.all={}", "an adapter's name is"),
        ("adapters.2nd={}", "an adapter's name is"),
        ("adapters.good=null", "needs the adapters good and bad"),
        ("train=5", "keys with values are needed below it"),
        ("seed.x=5", "a whole number is needed, got a mapping"),
        ("=5", "not of the form key=value"),
        ("train..x=5", "not of the form key=value"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_with_the_reason(override: str, reason: str) -> None:
    assert reason in complaint(None, override)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "lines `key: value` are needed"),
        ("- a\n- b\n", "lines `key: value` are needed, got a list"),
        ("seed: [1\n", "not YAML"),
        ("seed: 1\n---\nseed: 2\n", ":2: a second document begins here"),
        ("seed: &a 1\n", ":1: anchors and aliases"),
        ("a: [*x]\n", ":1: "),
        ("seed: !!python/object/apply:os.system [ls]\n", ":1: the tag "),
        ("seed: !!int 1\n", ":1: the tag "),
        ("? [a, b]\n: 1\n", ":1: a key must be a plain text"),
        ("seed: " + "[" * 5000, "nested deeper than"),
        ('seed: "3"\n', ":1: seed: a whole number is needed, got '3'."),
        ("train:\n  # max_steps: 3\n", "keys with values are needed below it"),
        ("<<: {seed: 1}\n", "there is no such key"),
        ("seed: \x01\n", "not YAML"),
    ],
)
def test_a_file_that_is_not_strict_yaml_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in complaint(written(tmp_path, text))


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none.yaml").endswith("none.yaml: there is no such file.")
    assert "this is a folder" in complaint(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"seed: 1\nmodel: caf\xe9\n")
    assert ":2: not UTF-8 text" in complaint(latin)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"# \n" * 400_000)
    assert "larger than 1,000,000 bytes" in complaint(large)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load_config(path).seed == 3


def test_held_out_examples_must_come_from_somewhere() -> None:
    assert "data.eval_fraction: more than 0 and less than 1" in complaint(
        None, "data.path=a.jsonl", "data.eval_fraction=0"
    )
    load_config(None, ["data.path=a.jsonl", "data.eval_fraction=0", "data.eval_path=b.jsonl"])


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().seed = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_python_values_are_not_converted_between_kinds() -> None:
    for wrong in ({"seed": True}, {"seed": "3"}, {"seed": 1.0}, {"run_name": 3}):
        with pytest.raises(ValidationError):
            RunConfig.model_validate(wrong)


texts = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=30
).filter(lambda text: text.strip() and text != "???")


@given(
    text=texts,
    number=st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(0, 2**32 - 1),
    label=texts,
    weight=st.floats(0, 1e10),
)
def test_a_dumped_config_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    text: str,
    number: float,
    seed: int,
    label: str,
    weight: float,
) -> None:
    row = {"good": {"update": weight}, "bad": "ablate"}
    config = RunConfig.model_validate(
        {
            "seed": seed,
            "model": text,
            "data": {"path": text},
            "train": {"learning_rate": number},
            "routing": {label: row},
            "targets": [text],
        }
    )
    path = written(tmp_path_factory.getbasetemp(), dump_config(config))
    assert load_config(path) == config


def test_a_dump_shows_every_key() -> None:
    shown = yaml.safe_load(dump_config(RunConfig()))
    assert shown["train"].keys() == TrainConfig.model_fields.keys()
    assert shown["adapters"]["bad"].keys() == AdapterConfig.model_fields.keys()


def test_differences_name_key_and_both_values() -> None:
    old = load_config(None)
    new = load_config(None, ["train.max_steps=350", "adapters.bad=null", "routing=none"])
    differences = config_differences(old, new)
    assert differences["train.max_steps"] == (1000, 350)
    assert differences["routing"] == ("anchored", "none")
    assert differences["adapters.bad.rank"] == (32, "absent")
    assert config_differences(old, old) == {}


def test_a_recipe_says_what_it_leaves_to_the_user() -> None:
    text = complaint(find_config("own"), "model=embedded")
    assert text.startswith("recipe own:")
    assert text.endswith("data.path has no default: write it in the file, or add data.path=VALUE.")
