"""Settings of an export say what they say also under the names that earlier readers look for."""

import copy

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from small_llama import small_llama
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, AutoTokenizer

from gradroute.export.files import write_model, write_tokenizer
from gradroute.export.older_readers import only_for_new_readers, with_older_names
from gradroute.export.proof import tokenizer_check
from gradroute.system.files import read_json, write_json

LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0}
LONG = {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
PHI3 = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
LAYERS = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}

# The settings of a base as transformers 4 wrote them, none of them the default of its class.
BEFORE = {
    "llama": {"rope_theta": 500000.0},
    "llama, scaled": {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "mistral": {"rope_theta": 321.0},
    "qwen2": {"rope_theta": 321.0, "rope_scaling": YARN},
    "qwen3": {"rope_theta": 321.0},
    "qwen3_moe": {"rope_theta": 321.0, "num_experts": 7},
    "mixtral": {"rope_theta": 321.0},
    "deepseek_v3": {"rope_theta": 321.0, "rope_scaling": YARN},
    "gemma2": {"rope_theta": 321.0},
    "gemma3_text": {"rope_theta": 321.0, "rope_local_base_freq": 54.0, **LAYERS},
    "gemma3_text, scaled": {
        "rope_theta": 321.0,
        "rope_local_base_freq": 54.0,
        "rope_scaling": LINEAR,
        **LAYERS,
    },
    "gpt_neox": {"rotary_emb_base": 321, "rotary_pct": 0.5},
    "stablelm": {"rope_theta": 321, "partial_rotary_factor": 0.5},
    "phi": {"rope_theta": 321.0, "partial_rotary_factor": 0.75},
    "phi3": {"rope_theta": 321.0, **PHI3},
    "phi3, long": {"rope_theta": 321.0, "rope_scaling": LONG, **PHI3},
    "olmo2": {"rope_theta": 321.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "olmo3": {"rope_theta": 500000.0, "rope_scaling": YARN, **LAYERS},
    "cohere2": {"rope_theta": 321.0},
    "granite": {"rope_theta": 321.0},
    "glm4": {"rope_theta": 321.0, "partial_rotary_factor": 0.25},
    "smollm3": {"rope_theta": 321.0},
    "granitemoehybrid": {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
    "zamba2": {"num_hidden_layers": 2, "layers_block_type": ["mamba", "hybrid"]},
    "modernbert-decoder": {"global_rope_theta": 321.0, "local_rope_theta": 54.0},
}


@pytest.mark.parametrize(
    ("model_type", "key", "value"), [("gpt2", "n_ctx", 1024), ("cohere2", "rotary_pct", 1.0)]
)
def test_what_the_converter_of_llama_cpp_cannot_do_without_is_there(model_type, key, value):
    settings = CONFIG_MAPPING[model_type]().to_dict()
    assert settings.get(key) is None, "nothing is tested here"
    assert with_older_names(settings)[key] == value


def saved(name, tmp_path):
    """What transformers 5 writes of a base, and the class that reads it."""
    config = CONFIG_MAPPING[name.partition(",")[0]]
    given = copy.deepcopy(BEFORE[name]) | {"torch_dtype": "bfloat16"}
    config.from_dict(given).save_pretrained(tmp_path)
    return read_json(tmp_path / "config.json"), config


@pytest.mark.parametrize("name", BEFORE)
def test_every_setting_that_a_base_had_stands_under_its_name_again(name, tmp_path):
    settings, _ = saved(name, tmp_path)
    lost = [key for key, value in BEFORE[name].items() if settings.get(key) != value]
    assert lost, "nothing is tested here"
    again = with_older_names(settings)
    assert again["torch_dtype"] == again["dtype"] == "bfloat16"
    for key, value in BEFORE[name].items():
        found = again[key]
        if key == "rope_scaling":
            kind = {"type": found["type"]} if "rope_type" in value else {}
            assert found == value | kind and found["type"] in value.values()
        else:
            assert found == value, key
    assert not only_for_new_readers(again)


@pytest.mark.parametrize("name", BEFORE)
def test_transformers_5_reads_the_same_model_with_the_earlier_names(name, tmp_path):
    settings, config = saved(name, tmp_path)
    plain = config.from_pretrained(tmp_path).to_dict()
    write_json(tmp_path / "config.json", with_older_names(settings))
    again = config.from_pretrained(tmp_path).to_dict()
    for one in (plain, again):  # a second name of what `rope_type` says; no formula reads it
        rope = one.get("rope_parameters") or {}
        for part in (rope, rope.get("full_attention") or {}):
            part.pop("type", None)
    assert {key: again[key] for key in plain} == plain


def test_positions_that_no_earlier_name_can_say_are_left_out_and_told(tmp_path, capsys):
    base = small_llama()
    write_model(tmp_path, base, torch.float32)
    assert "rotary" not in capsys.readouterr().err
    kinds = {"full_attention": {"rope_theta": 5.0}, "sliding_attention": {"rope_theta": 7.0}}
    settings = {"model_type": "olmo3", "rope_parameters": kinds}
    again = with_older_names(settings)
    assert again == settings and only_for_new_readers(again)
    assert only_for_new_readers({"text_config": settings})
    assert not only_for_new_readers(with_older_names({"model_type": "gpt2"}))


def test_parts_of_a_model_get_their_own_names():
    part = {"model_type": "llama", "dtype": "float16", "rope_parameters": {"rope_theta": 7.0}}
    again = with_older_names({"model_type": "llava", "dtype": "float16", "text_config": part})
    assert again["text_config"]["rope_theta"] == 7.0
    assert again["text_config"]["torch_dtype"] == again["torch_dtype"] == "float16"
    assert "rope_theta" not in again


def test_a_merged_model_says_its_rotary_base_where_earlier_readers_look(tmp_path):
    model = small_llama()
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 500000.0}
    write_model(tmp_path, model, torch.bfloat16)
    settings = read_json(tmp_path / "config.json")
    assert settings["rope_theta"] == settings["rope_parameters"]["rope_theta"] == 500000.0
    assert settings["torch_dtype"] == "bfloat16" and "rope_scaling" not in settings


@pytest.fixture
def tokenizer():
    made = byte_tokenizer(
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
    )
    made.add_special_tokens({"extra_special_tokens": ["<turn>"]})
    made.chat_template = "{% for m in messages %}<turn>{{ m.content }}{% endfor %}"
    return made


def test_a_tokenizer_is_written_for_the_class_that_both_versions_have(tokenizer, tmp_path):
    write_tokenizer(tmp_path, tokenizer)
    settings = read_json(tmp_path / "tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<turn>"]
    assert "extra_special_tokens" not in settings and settings["padding_side"] == "left"
    assert settings["add_prefix_space"] is False
    again = AutoTokenizer.from_pretrained(tmp_path)
    check = tokenizer_check(tokenizer, again)
    assert check.passed, check.text
    assert again.padding_side == "left" and "<turn>" in again.all_special_tokens
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert alone.encode("a <turn>b").ids == tokenizer.encode("a <turn>b")


def test_named_tokens_of_a_tokenizer_are_named_for_both_versions(tmp_path):
    names = {"image_token": "<image>"}
    saved_before = tmp_path / "before"
    byte_tokenizer(bos_token="<s>", eos_token="</s>").save_pretrained(saved_before)
    path = saved_before / "tokenizer_config.json"
    write_json(path, read_json(path) | {"extra_special_tokens": names})
    tokenizer = AutoTokenizer.from_pretrained(saved_before)
    tmp_path = tmp_path / "after"
    tmp_path.mkdir()
    write_tokenizer(tmp_path, tokenizer)
    settings = read_json(tmp_path / "tokenizer_config.json")
    assert settings["extra_special_tokens"] == names
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.image_token == "<image>" and tokenizer_check(tokenizer, again).passed


def test_several_chat_templates_are_written_where_every_reader_finds_them(tokenizer, tmp_path):
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "tools"}
    write_tokenizer(tmp_path, tokenizer)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("what", ["template", "side of a special token", "beginning"])
def test_a_tokenizer_that_makes_other_tokens_is_seen(tokenizer, tmp_path, what):
    write_tokenizer(tmp_path, tokenizer)
    other = AutoTokenizer.from_pretrained(tmp_path)
    if what == "template":
        other.chat_template = "x"
    elif what == "beginning":
        other.backend_tokenizer.post_processor = None
    else:
        other = byte_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
        other.add_special_tokens({"extra_special_tokens": ["<other>"]})
    assert not tokenizer_check(tokenizer, other).passed
