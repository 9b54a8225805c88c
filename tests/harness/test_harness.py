"""Runs on standard tasks: measured as gradroute measures, once, and compared in pairs."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from tiny_runs import TWO, tiny_run

from gradroute.cli.main import main
from gradroute.data.batches import tokenize
from gradroute.data.examples import Example
from gradroute.errors import ConfigError, MachineError, NumericError
from gradroute.evaluate.generation import Prompt, generate_modes
from gradroute.evaluate.losses import ExampleLosses, held_out_losses
from gradroute.harness import as_lm, evaluator, measure_tasks
from gradroute.harness.lm import ModeLM
from gradroute.harness.tasks import TaskRequest, load_tasks
from gradroute.models.base import load_base
from gradroute.routing.policy import AblationMode
from gradroute.runs.folder import RunFolder

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "tasks"
STORIES = [json.loads(line) for line in (EXAMPLES / "stories.jsonl").read_text().splitlines()]
MODES = ("full", "bad_ablated", "base")
FAST = ("adapters.good.learning_rate=0.02", "adapters.bad.learning_rate=0.02")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tiny_run(tmp_path_factory.mktemp("runs"), "routed", *TWO, *FAST, "train.max_steps=6")


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    """A run of one's own, not measured yet."""
    return RunFolder(shutil.copytree(trained.path, tmp_path / "runs" / "routed"))


@pytest.fixture(scope="module")
def lm(trained: RunFolder) -> ModeLM:
    return as_lm(trained, "full")


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tasks of `examples/`, as they are, in a folder to change."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(EXAMPLES, tmp_path / "examples" / "tasks"))


def mode(name: str) -> AblationMode:
    return AblationMode.parse(name, ("good", "bad"))


def ask(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, given, 0) for given in arguments]  # pyright: ignore


def losses(lm: ModeLM, examples: list[Example], *names: str) -> dict[str, ExampleLosses]:
    """What gradroute measures on the same texts, without the end token, which lm-eval has not."""
    rows, _ = tokenize(examples, lm.tokenizer, [0] * len(examples), 128)
    rows = [replace(row, input_ids=row.input_ids[:-1]) for row in rows]
    modes = [mode(name) for name in names]
    return held_out_losses(lm._routed, rows, modes, pad_id=0, rows_per_batch=7)


# ---------------------------------------------------------------------------------- the model


def test_log_likelihoods_are_the_held_out_losses_under_every_mode(lm: ModeLM):
    pairs = [(s["story"], f" {word}") for s in STORIES[:8] for word in s["choices"]]
    pairs += [("", "The fox."), ("The fox ", "slept.")]
    examples = [Example(str(i), text, prompt) for i, (prompt, text) in enumerate(pairs)]
    examples[-1] = Example("last", " slept.", "The fox")  # lm-eval moves the space over
    expected = losses(lm, examples, *MODES)
    found = {
        name: lm.under(mode(name)).loglikelihood(ask("loglikelihood", *pairs), disable_tqdm=True)
        for name in MODES
    }
    for name in MODES:
        assert [-value for value, _ in found[name]] == pytest.approx(
            expected[name].sums,
            abs=1e-5,
            rel=1e-5,  # float32, in batches of other shapes
        )
    assert len({found[name][0][0] for name in MODES}) == 3


def test_whole_texts_are_likewise(lm: ModeLM):
    texts = [f"{s['story']} {s['choices'][s['answer']]}." for s in STORIES[:6]]
    expected = losses(lm, [Example(text, text) for text in texts], "bad_ablated")["bad_ablated"]
    found = lm.under(mode("bad_ablated")).loglikelihood_rolling(
        ask("loglikelihood_rolling", *((text,) for text in texts)), disable_tqdm=True
    )
    assert [-value for value in found] == pytest.approx(expected.sums, rel=1e-6)


def test_texts_are_written_as_they_are_elsewhere_in_gradroute(lm: ModeLM):
    """Greedy, from the same beginning token, and cut at the first stop."""
    stories = [s["story"] for s in STORIES[:5]]
    wanted = [mode("bad_ablated"), mode("base")]
    completions = generate_modes(
        lm._routed, lm.tokenizer, [Prompt(s, s) for s in stories], wanted,
        max_new_tokens=6, temperature=0.0, top_p=1.0, seed=0, rows_per_batch=64,
    )  # fmt: skip
    settings = {"until": ["."], "max_gen_toks": 6, "do_sample": False}
    for one in wanted:
        found = lm.under(one).generate_until(
            ask("generate_until", *((s, settings) for s in stories)), disable_tqdm=True
        )
        assert found == [done.text.partition(".")[0] for done in completions[one.name]]


def test_base_is_the_model_that_never_had_an_adapter(lm: ModeLM):
    base = load_base("embedded")
    tokens = base.tokenizer("A fox slept", return_tensors="pt").input_ids
    with torch.no_grad():
        spread = base.model(tokens).logits[0].log_softmax(-1)
    own = float(spread[:-1].gather(1, tokens[0, 1:, None]).sum())
    pair = ask("loglikelihood", ("", "A fox slept"))
    [(found, _)] = lm.under(mode("base")).loglikelihood(pair, disable_tqdm=True)
    assert found == pytest.approx(own, rel=1e-6)


def test_numbers_that_overflow_are_an_error_and_no_wrong_answer(trained: RunFolder):
    lm = as_lm(trained, "full")
    name = next(name for name, _ in lm._routed.named_parameters() if "down_proj.lora_B.bad" in name)
    with torch.no_grad():
        lm._routed.get_parameter(name).fill_(torch.nan)
    pair = ask("loglikelihood", ("A", " fox"))
    with pytest.raises(NumericError, match=r"log-likelihood of .* under full is nan"):
        lm.loglikelihood(pair, disable_tqdm=True)
    lm.under(mode("bad_ablated")).loglikelihood(pair, disable_tqdm=True)


# ------------------------------------------------------------------------------- measuring


def results(run: RunFolder) -> list[dict[str, Any]]:
    return json.loads(run.tasks.read_text())["results"]


def test_a_run_is_measured_once_and_printed_with_paired_differences(
    run: RunFolder, tasks: Path, lm: ModeLM, capsys, monkeypatch
):
    names = ("story_endings", "story_texts", "story_words")
    asked = TaskRequest(names, tasks)
    measure_tasks([run], asked, modes=MODES, scales=())
    first = capsys.readouterr()
    rows = {(row["task"], row["metric"], row["mode"]): row for row in results(run)}
    assert {key[:2] for key in rows} == {
        ("story_endings", "acc"), ("story_texts", "word_perplexity"),
        ("story_texts", "bits_per_byte"), ("story_words", "exact_match"),
    }  # fmt: skip
    pairs = [
        Example(f"{i}{word}", f" {word}", s["story"])
        for i, s in enumerate(STORIES)
        for word in s["choices"]
    ]
    for name, found in losses(lm, pairs, *MODES).items():
        right = [
            (found.sums[2 * i] < found.sums[2 * i + 1]) == (s["answer"] == 0)
            for i, s in enumerate(STORIES)
        ]
        row = rows["story_endings", "acc", name]
        assert row["value"] == pytest.approx(sum(right) / len(STORIES))
        assert row["n"] == len(STORIES) and row["lower"] < row["value"] <= row["upper"]
    assert "story_texts: bits_per_byte, 24 documents, 0 worked examples, less is" in first.out
    assert "mode         value                 minus base" in first.out
    assert first.err.count("measuring") == 9
    assert "it/s" not in first.err and "pretrained" not in first.err
    assert str(tasks) not in run.tasks.read_text() + run.task_documents.read_text()

    monkeypatch.setattr(evaluator, "as_lm", lambda *_: pytest.fail("measured again"))
    measure_tasks([run], asked, modes=MODES, scales=())
    again = capsys.readouterr()
    assert (again.out, again.err) == (first.out, "")


def test_results_of_lm_evals_own_call_name_the_mode(
    run: RunFolder, tasks: Path, lm: ModeLM, capsys
):
    names = ["story_endings", "story_texts"]
    measure_tasks([run], TaskRequest(tuple(names), tasks), modes=("bad_ablated",), scales=())
    rows = {(row["task"], row["metric"]): row for row in results(run)}
    assert {row["mode"] for row in rows.values()} == {"bad_ablated"}
    assert all(row["lower"] <= row["value"] <= row["upper"] for row in rows.values())
    measure: Any = lm_eval.simple_evaluate  # its decorator hides its type
    found = measure(
        lm.under(mode("bad_ablated")),
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    assert found["config"]["ablation_mode"] == "bad_ablated"
    for task, metric in (("story_endings", "acc"), ("story_texts", "bits_per_byte")):
        assert found["results"][task][f"{metric},none"] == pytest.approx(
            rows[task, metric]["value"]
        )


def test_what_a_number_depends_on_is_measured_anew_when_it_changes(
    run: RunFolder, tasks: Path, capsys
):
    def measured(**settings: Any) -> str:
        asked = TaskRequest(("story_endings",), tasks, **settings)
        measure_tasks([run], asked, modes=("base",), scales=())
        return capsys.readouterr().err

    assert "measuring" in measured(limit=3)
    assert "measuring" in measured(limit=4)
    assert measured(limit=3) == measured(limit=4) == ""
    assert sorted(row["n"] for row in results(run)) == [3, 4]
    lines = (tasks / "stories.jsonl").read_text().splitlines(keepends=True)
    (tasks / "stories.jsonl").write_text("".join(lines[1:]))
    told = measured(limit=3)
    assert "1 earlier numbers were measured on another checkpoint, task, set of doc" in told
    settings = (tasks / "story_endings.yaml").read_text()
    (tasks / "story_endings.yaml").write_text(settings.replace("{{story}}", "Once. {{story}}"))
    assert "they are ignored" in measured(limit=3)
    assert sorted(row["n"] for row in results(run)) == [3, 4]


def test_worked_examples_are_the_same_under_every_mode(run: RunFolder, tasks: Path):
    asked = TaskRequest(("story_endings",), tasks, limit=4, num_fewshot=2)
    measure_tasks([run], asked, modes=("full", "base"), scales=())
    lines = [json.loads(line) for line in run.task_documents.read_text().splitlines()]
    prompts = {
        name: [line["prompt_hash"] for line in lines if line["mode"] == name]
        for name in ("full", "base")
    }
    assert prompts["full"] == prompts["base"] and len(set(prompts["full"])) == 4
    assert {row["num_fewshot"] for row in results(run)} == {2}


GROUP = """
group: all_stories
task: [story_endings, {task: other_endings, dataset_path: json, test_split: train,
  dataset_kwargs: {data_files: examples/tasks/stories.jsonl}, output_type: multiple_choice,
  doc_to_text: "{{story}}", doc_to_choice: "{{choices}}", doc_to_target: answer,
  metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]}]
aggregate_metric_list: [{metric: acc}]
"""


def test_a_group_has_the_numbers_of_its_tasks_and_its_own(run: RunFolder, tasks: Path, capsys):
    (tasks / "group.yaml").write_text(GROUP)
    measure_tasks([run], TaskRequest(("all_stories",), tasks, limit=5), modes=("base",), scales=())
    values = {row["task"]: row["value"] for row in results(run)}
    assert values.keys() == {"story_endings", "all_stories::other_endings", "all_stories"}
    assert len(set(values.values())) == 1
    assert "all_stories: acc, 10 documents" in capsys.readouterr().out


def test_modes_that_answer_alike_are_told(run: RunFolder, tasks: Path, capsys):
    modes = ("full", "good=1,bad=1.0000000001")
    measure_tasks([run], TaskRequest(("story_endings",), tasks, limit=2), modes=modes, scales=())
    told = capsys.readouterr().out
    assert "good=1,bad=1.0000000001 and full gave identical answers to every doc" in told


# ------------------------------------------------------------------------- what is refused

TASK = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: examples/tasks/stories.jsonl}
test_split: train
output_type: generate_until
doc_to_text: "{{story}}"
doc_to_target: "x"
generation_kwargs: {until: ["."], max_gen_toks: 2}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        (
            "exact_match",
            "rouge_of_somebody",
            ConfigError,
            "is not one of lm-eval's own; it would be",
        ),
        ("exact_match,", "exact_match, hf_evaluate: true,", ConfigError, "a program from"),
        ("test_split", "unsafe_code: true\ntest_split", ConfigError, "runs code that the model wr"),
        ("stories.jsonl", "none.jsonl", ConfigError, r"cannot be set up \(FileNotFoundError"),
        ("{{story}}", "{{nothing}}", ConfigError, "'nothing' is undefined"),
        ("{{story}}", "{{", ConfigError, r"cannot be set up \(TemplateSyntaxError"),
        ("dataset_path: json", "dataset_path: a/b", MachineError, "its data set is not available"),
        ("generate_until", "telepathy", ConfigError, "Got invalid output_type 'telepathy'"),
    ],
)
def test_a_task_that_cannot_be_measured_is_one_sentence(
    tasks: Path, old: str, new: str, error: type[Exception], message: str
):
    (tasks / "mine.yaml").write_text(TASK.replace(old, new, 1))
    with pytest.raises(error, match=rf"task mine.*{message}") as caught:
        load_tasks(TaskRequest(("mine",), tasks))
    assert "\n" not in str(caught.value)


def test_code_beside_a_task_runs_only_where_its_folder_is_named(tasks: Path, run: RunFolder):
    (tasks / "mine.yaml").write_text(TASK.replace('"{{story}}"', "!function beside.text"))
    (tasks / "beside.py").write_text("def text(doc): return doc['story']\n")
    [loaded] = load_tasks(TaskRequest(("mine",), tasks, limit=2))
    assert loaded.tasks["mine"].doc_to_text(STORIES[0]) == STORIES[0]["story"]
    (tasks / "beside.py").write_text("def text(doc): return 'Say: ' + doc['story']\n")
    [other] = load_tasks(TaskRequest(("mine",), tasks, limit=2))
    assert other.facts["mine"]["config"] != loaded.facts["mine"]["config"]
    (tasks / "beside.py").write_text("def text(doc): return 1 / 0\n")
    with pytest.raises(ConfigError, match=r"task mine cannot be set up \(ZeroDivisionError"):
        load_tasks(TaskRequest(("mine",), tasks))


def test_unknown_tasks_are_named_with_the_nearest_and_files_are_no_names(tasks: Path, monkeypatch):
    (tasks.parent / "own" / "arc").mkdir(parents=True)  # in place of lm-eval's fifteen thousand
    (tasks.parent / "own" / "arc" / "a.yaml").write_text("task: arc_easy\n")
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tasks.parent / "own" / "manager.py"))
    with pytest.raises(ConfigError, match=r"no task 'arc_esay' in lm-eval .*mean arc_easy[?]"):
        load_tasks(TaskRequest(("arc_esay",)))
    with pytest.raises(ConfigError, match=r"no task '.*story_words.yaml' in lm-eval"):
        load_tasks(TaskRequest((str(tasks / "story_words.yaml"),)))
    with pytest.raises(ConfigError, match=r"--include-path nowhere is no folder"):
        load_tasks(TaskRequest(("story_words",), Path("nowhere")))


def test_a_group_that_changes_a_task_does_not_stand_beside_it(tasks: Path):
    (tasks / "group.yaml").write_text("group: g\ntask: [{task: story_endings, description: 'A.'}]")
    with pytest.raises(ConfigError, match="task story_endings is not the same in g and in story"):
        load_tasks(TaskRequest(("story_endings", "g"), tasks))


def test_without_the_extra_the_package_to_install_is_named(trained: RunFolder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MachineError, match=r"pip install 'gradroute\[eval\]'"):
        as_lm(trained, "full")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--limit 3", 2, "--limit needs --tasks A,B"),
        ("--include-path x", 2, "--include-path needs --tasks A,B"),
        ("--num-fewshot 0", 2, "--num-fewshot needs --tasks A,B"),
        ("--tasks a,,b", 2, "--tasks 'a,,b' needs names with commas between them"),
        ("--tasks a --prompts bos", 2, "--prompts is not used with --tasks"),
        ("--tasks a --out x", 2, "--out is not used with --tasks"),
        ("--tasks a --elicitation", 2, "--elicitation is not used with --tasks"),
        ("--tasks story_words --mode worse", 2, "the ablation mode 'worse' does not exist"),
        ("--tasks story_words --include-path examples/tasks --num-fewshot 99", 2,
         "task story_words fails under full (ValueError: Sample larger than population"),
    ],
)  # fmt: skip
def test_the_command_line_says_what_does_not_go_together(
    run: RunFolder, tasks: Path, capsys, options: str, code: int, message: str
):
    assert main(["eval", str(run.path), *options.split()]) == code
    assert message in capsys.readouterr().err
    assert not run.tasks.exists()


def test_a_damaged_file_of_results_is_named(run: RunFolder, tasks: Path, capsys):
    run.tasks.parent.mkdir(exist_ok=True)
    command = ["eval", str(run.path), "--tasks", "story_words", "--include-path", str(tasks)]
    for content, message in (
        ('{"schema_version": 9}', "(schema 9): delete it"),
        ('{"schema_version": 1, "results": [{}], "provenance": {}}', "is damaged: delete it"),
        ("{", "is damaged"),
    ):
        run.tasks.write_text(content)
        assert main(command) == 3
        assert message in capsys.readouterr().err
