"""Rows, held-out rows and prompts are held against the model's positions before training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gradroute.config.run_config import RunConfig, find_config, load_config
from gradroute.errors import ConfigError, DataError, GradrouteError
from gradroute.evaluate.evaluator import evaluate_run
from gradroute.evaluate.request import EvaluationRequest
from gradroute.preflight.validation import validate
from gradroute.run import train_run

POSITIONS = 40


@pytest.fixture(scope="module", params=["learned", "rotary"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = byte_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    own: dict[str, Any] = {
        "vocab_size": 260,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param == "learned":
            model = GPT2LMHeadModel(
                GPT2Config(**own, n_embd=16, n_layer=2, n_head=2, n_positions=POSITIONS)
            )
        else:
            sizes: dict[str, Any] = {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
            }
            model = LlamaForCausalLM(
                LlamaConfig(
                    **own, **sizes, num_attention_heads=2, max_position_embeddings=POSITIONS
                )
            )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(base: Path, rows: list[str], *more: str) -> RunConfig:
    """A run on rows, every third of them bad."""
    data = base / "rows.jsonl"
    labeled = [
        {"id": str(at), "text": text, "label": "good" if at % 3 else "bad"}
        for at, text in enumerate(rows)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in labeled))
    return load_config(
        find_config("own"),
        [
            f"model={base}", f"data.path={data}", "run_name=tiny", "adapters.good.rank=2",
            "adapters.bad.rank=2", "train.max_steps=1", "train.warmup_steps=0",
            "train.batch_size=2", "data.eval_fraction=0.4", "evaluate.max_new_tokens=4",
            "evaluate.prefix_words=2", "evaluate.prompts=2", "evaluate.bos_samples=2", *more,
        ],
    )  # fmt: skip


SHORT = [f"row {at} is short" for at in range(20)]
LONG = [f"row {at} is longer than all the positions of it" for at in range(20)]


def refused(config: RunConfig, root: Path) -> GradrouteError:
    """The one problem that both validation and training name."""
    [problem] = validate(config, root).problems
    with pytest.raises(type(problem)) as raised:
        train_run(config, root, if_exists="fail", bar=False)
    assert str(raised.value) == str(problem)
    assert not (root / "tiny" / "checkpoints").exists()
    return problem


def test_rows_longer_than_the_positions_are_refused_before_training(base: Path, tmp_path: Path):
    problem = refused(config(base, LONG), tmp_path)
    assert isinstance(problem, ConfigError)
    assert f"Set data.max_length={POSITIONS}" in str(problem)


def test_rows_cut_at_the_positions_are_trained_on_and_measured(base: Path, tmp_path: Path):
    fitting = config(base, LONG, f"data.max_length={POSITIONS}")
    folder = train_run(fitting, tmp_path, if_exists="fail", bar=False)
    evaluate_run(folder, EvaluationRequest())
    assert folder.results.is_file()


def test_a_larger_max_length_than_positions_does_no_harm_to_short_rows(base: Path, tmp_path: Path):
    assert validate(config(base, SHORT, "data.max_length=4096"), tmp_path).problems == ()


def test_a_long_row_that_is_held_out_is_refused_before_training(base: Path, tmp_path: Path):
    for at in range(0, 20, 4):  # some of these are held out
        problem = refused(config(base, [*SHORT[:at], LONG[0], *SHORT[at:]]), tmp_path / str(at))
        assert "data.max_length: 1 of" in str(problem)


def test_prompts_without_room_for_their_completions_are_refused_before_training(
    base: Path, tmp_path: Path
):
    problem = refused(config(base, SHORT, "evaluate.max_new_tokens=39"), tmp_path)
    assert isinstance(problem, DataError)
    assert f"the {POSITIONS} positions of the model. Set evaluate.max_new_tokens=" in str(problem)


def test_prompts_without_a_right_answer_are_refused_before_training(base: Path, tmp_path: Path):
    """Such as those of one's own rows for a behavior that is made of embedded questions."""
    asked = config(base, [f"Be kind to {at}." for at in range(30)], "behavior=wrong_answers")
    found = validate(asked, tmp_path)
    assert any(
        "is not a question of the embedded task" in str(problem) for problem in found.problems
    )
    with pytest.raises(DataError, match="is not a question of the embedded task"):
        train_run(asked, tmp_path, if_exists="fail", bar=False)
    assert not (tmp_path / asked.run_name / "checkpoints").exists()
