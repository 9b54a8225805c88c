import logging
from collections.abc import Iterator

import pytest
import torch
import transformers
from tiny_writers import (
    MODES,
    PROMPTS,
    TOKENIZER,
    VOCABULARY,
    generate,
    letter_tokenizer,
    next_logits,
    settings_of,
    write_slowly,
    writer,
)

from gradroute.errors import ConfigError, DataError, NumericError
from gradroute.evaluate.generation import Completion, Prompt
from gradroute.evaluate.sampling import draw, gumbel_noise, noise_keys
from gradroute.routing.adapters import load_adapter_state
from gradroute.routing.policy import AblationMode


def texts(completions: dict[str, list[Completion]]) -> dict[str, list[str]]:
    return {mode: [one.text for one in written] for mode, written in completions.items()}


@pytest.fixture
def transformers_records(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    transformers.utils.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        yield caplog
    transformers.utils.logging.disable_propagation()


@pytest.mark.parametrize("kind", ["llama", "gpt_neo", "gemma3"])
def test_greedy_completions_equal_one_row_at_a_time_without_padding_or_cache(kind: str) -> None:
    model = writer(kind)
    found = texts(generate(model, temperature=0.0))
    wanted = {
        mode.name: [write_slowly(model, mode, prompt.text, 6) for prompt in PROMPTS]
        for mode in MODES
    }
    assert found == wanted
    assert len({tuple(found[mode.name]) for mode in MODES}) == len(MODES)


def test_sampled_completions_equal_drawing_one_row_at_a_time() -> None:
    model = writer()
    found = texts(generate(model))
    for mode in MODES:
        for prompt, text in zip(PROMPTS, found[mode.name], strict=True):
            tokens = [1, *(VOCABULARY.index(letter) for letter in prompt.text)]
            start = len(tokens)
            for step in range(6):
                logits = next_logits(model, mode, tokens)
                noise = gumbel_noise(noise_keys(42, [prompt.id]), step, len(logits))
                tokens.append(int(draw(logits[None], noise, 0.9)))
                if tokens[-1] == 2:
                    break
            written = [token for token in tokens[start:] if token > 2]
            assert text == "".join(VOCABULARY[token] for token in written)


def test_a_completion_depends_on_neither_batch_order_nor_on_the_other_modes() -> None:
    model = writer()
    together = texts(generate(model))
    for rows in (1, 12):
        assert texts(generate(model, rows_per_batch=rows)) == together
    backwards = texts(generate(model, PROMPTS[::-1]))
    assert {mode: written[::-1] for mode, written in backwards.items()} == together
    for mode in MODES:
        assert texts(generate(model, PROMPTS[1:3], (mode,)))[mode.name] == together[mode.name][1:3]


def test_a_longer_limit_only_goes_on() -> None:
    model = writer()
    short, long = generate(model, max_new_tokens=4), generate(model, max_new_tokens=12)
    for mode in MODES:
        for one, other in zip(short[mode.name], long[mode.name], strict=True):
            assert other.text.startswith(one.text)


def test_modes_that_are_the_same_write_the_same() -> None:
    same = AblationMode.parse("good=1,bad=1", ["good", "bad"])
    found = texts(generate(writer(), modes=(MODES[0], MODES[1], same)))
    assert found["full"] == found["good=1,bad=1"] != found["bad_ablated"]


def test_another_seed_and_another_prompt_id_write_something_else() -> None:
    model = writer()
    found = texts(generate(model))
    assert texts(generate(model, seed=43)) != found
    renamed = [Prompt(f"other {prompt.id}", prompt.text) for prompt in PROMPTS]
    assert texts(generate(model, renamed)) != found


def test_an_end_token_ends_its_row_and_no_other() -> None:
    model = writer()
    settings_of(model).eos_token_id = None
    open_ended = generate(model, tokenizer=letter_tokenizer(eos=None), temperature=0.0)
    assert not any(one.ended for written in open_ended.values() for one in written)
    written = open_ended["full"][0].text
    end = next(letter for letter in written[3:] if letter not in "<pad></s>")
    ended = generate(model, tokenizer=letter_tokenizer(eos=end), temperature=0.0)
    hits = 0
    for mode in MODES:
        for whole, cut in zip(open_ended[mode.name], ended[mode.name], strict=True):
            assert cut.text == whole.text.split(end)[0]
            assert cut.ended == (end in whole.text)
            hits += cut.ended
    assert 0 < hits < len(MODES) * len(PROMPTS)


def test_every_end_token_of_the_model_ends_a_row() -> None:
    model = writer()
    plain = generate(model, temperature=0.0)["full"]
    letter = max((one.text for one in plain), key=len)[2]
    settings_of(model).eos_token_id = [2, VOCABULARY.index(letter)]
    cut = generate(model, temperature=0.0)["full"]
    assert [one.text for one in cut] == [one.text.split(letter)[0] for one in plain]


def test_tokens_are_counted_without_padding_and_end() -> None:
    for one in generate(writer(), temperature=0.0, max_new_tokens=11)["full"]:
        assert one.tokens == 11 or one.ended
        assert one.tokens >= len(one.text)


def test_the_models_own_generation_settings_do_not_interfere_and_come_back() -> None:
    model = writer()
    wanted = generate(model)
    own = settings_of(model)
    own.update(
        do_sample=True, top_k=1, repetition_penalty=9.0, num_beams=3, min_new_tokens=6,
        temperature=0.1, no_repeat_ngram_size=1, max_length=3, suppress_tokens=[5, 6, 7],
    )  # fmt: skip
    assert generate(model) == wanted
    assert settings_of(model) is own
    assert own.top_k == 1


def test_generation_says_nothing(
    transformers_records: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    model = writer()
    for tokenizer in (TOKENIZER, letter_tokenizer(pad=None), letter_tokenizer(eos=None, pad=None)):
        generate(model, tokenizer=tokenizer)
    assert not transformers_records.records
    assert capsys.readouterr() == ("", "")


def test_an_empty_prompt_starts_from_the_beginning_token_or_is_an_error() -> None:
    model, empty = writer(), [Prompt("p", "")]
    assert generate(model, empty, temperature=0.0)["full"][0].text == write_slowly(
        model, MODES[0], "", 6
    )
    with pytest.raises(ConfigError, match="'p' is empty and the tokenizer has no beginning"):
        generate(model, empty, tokenizer=letter_tokenizer(bos=None))


def test_a_prompt_that_writes_the_beginning_token_out_gets_it_once() -> None:
    model = writer()
    written = [generate(model, [Prompt("p", text)])["full"] for text in ("<s>Once", "Once")]
    assert written[0] == written[1]


def test_modules_keep_their_own_training_flags_also_after_an_error() -> None:
    model = writer()
    model.train()
    next(model.get_base_model().children()).eval()
    flags = [module.training for module in model.modules()]
    generate(model)
    assert [module.training for module in model.modules()] == flags
    with pytest.raises(ConfigError):
        generate(model, temperature=-1.0)
    assert [module.training for module in model.modules()] == flags


def test_a_broken_adapter_is_an_error_where_it_is_on_and_nothing_where_it_is_off() -> None:
    from gradroute.routing.adapters import adapter_state

    model = writer()
    safe = tuple(mode for mode in MODES if not mode.scales["bad"])
    wanted = generate(model, modes=safe)
    state = adapter_state(model, "bad")
    nan = {name: torch.full_like(tensor, torch.nan) for name, tensor in state.items()}
    load_adapter_state(model, "bad", nan)
    assert generate(model, modes=safe) == wanted
    with pytest.raises(NumericError):
        generate(model)


def test_no_mode_and_no_token_are_refused() -> None:
    with pytest.raises(ConfigError, match="no ablation mode"):
        generate(writer(), modes=())
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        generate(writer(), max_new_tokens=0)


@pytest.mark.parametrize("kind", ["llama", "gpt_neo"])
def test_a_prompt_that_leaves_no_room_in_the_models_positions_is_named(kind: str) -> None:
    model = writer(kind)
    base = model.get_base_model()
    assert isinstance(base, transformers.PreTrainedModel)
    positions = base.config.max_position_embeddings
    fits = Prompt("fits", "a" * (positions - 1 - 6))  # the beginning token, and six new ones
    with pytest.raises(DataError, match=f"'long' is {positions - 5} tokens long.*{positions} pos"):
        generate(model, [Prompt("p", "a"), Prompt("long", fits.text + "a")], MODES[:1])
    if kind == "gpt_neo":  # of few positions
        assert len(generate(model, [fits], MODES[:1])["full"]) == 1


def test_a_prompt_of_another_models_tokens_is_named() -> None:
    model = writer()
    base = model.get_base_model()
    assert isinstance(base, transformers.PreTrainedModel)
    base.resize_token_embeddings(5)
    with pytest.raises(DataError, match=r"prompt 'p' has the token .*embeddings for 5"):
        generate(model, [Prompt("p", "zz")], MODES[:1])
