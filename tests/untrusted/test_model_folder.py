"""An untrusted model folder: what it names outside of itself is refused before it is read.

The library that would follow the names is asked beside gradroute: each hole that is closed here is
one that it has.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hostile_models import (
    CANARY,
    change,
    moved_out,
    pickled,
    plant,
    tiny_model,
    without,
    write_index,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from gradroute.errors import ConfigError
from gradroute.models.base import load_base
from gradroute.untrusted import model_folder
from gradroute.untrusted.model_folder import _TOKENIZER_CLASS, check_model_folder, named_weights

Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of one's own beside a folder of secrets, in the current folder."""
    plant(tmp_path / "outside")
    shutil.copy(tmp_path / "outside" / ".env", tmp_path)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made, tmp_path / "model"))


def outside(folder: Path) -> Path:
    return folder.parent / "outside"


def config(**settings: Any) -> Spoil:
    return lambda folder: change(folder / "config.json", **settings)


def tokenizer(**settings: Any) -> Spoil:
    return lambda folder: change(folder / "tokenizer_config.json", **settings)


def tokens(**settings: Any) -> Spoil:
    return lambda folder: change(folder / "special_tokens_map.json", **settings)


def link(name: str, target: str) -> Spoil:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def content(name: str, text: str) -> Spoil:
    return lambda folder: (folder / name).write_text(text)


def index(file: Any, prepare: Callable[[Path], list[str]] | None = None) -> Spoil:
    def make(folder: Path) -> None:
        write_index(folder, prepare(folder) if prepare else ["x"], file)

    return make


REFUSED: dict[str, tuple[Spoil, str]] = {
    "attention from the hub": (config(attn_implementation="org/kernel"), "selects code"),
    "attention under its private name": (config(_attn_implementation="org/kernel:f"), "selects"),
    "attention of a part": (config(attn_implementation={"": "eager", "t": "o/k"}), "selects code"),
    "internal attention": (config(_attn_implementation_internal="o/k"), "is a private setting"),
    "experts from the hub": (config(experts_implementation="o/k"), "selects code"),
    "attention deep inside": (config(text_config={"x": [{"attn_implementation": "o/k"}]}),
                              r"text_config.x\[0\].attn_implementation selects code"),
    "trusting itself": (config(text_config={"trust_remote_code": True}), "selects code"),
    "pipelines of its own": (config(custom_pipelines={"x": {"impl": "m.C"}}), "selects code"),
    "generation of its own": (config(custom_generate="org/repo"), "selects code"),
    "kernels": (config(use_kernels=True), "selects code"),
    "weights in a pickle": (config(transformers_weights="adapter_model.bin"), "safetensors file"),
    "weights elsewhere": (config(transformers_weights="../m.safetensors"), "safetensors file"),
    "another configuration elsewhere": (config(configuration_files=["config./../../x.json"]),
                                        "must be plain names"),
    "a list that is none": (config(configuration_files={"a": 1}), "must be plain names"),
    "no tokenizer's class": (tokenizer(tokenizer_class="LlamaForCausalLM"), "must be a tokenizer"),
    "an automatic class": (tokenizer(tokenizer_class="AutoTokenizer"), "must be a tokenizer"),
    "a class with folders": (tokenizer(tokenizer_class="RagTokenizer"), "must be a tokenizer"),
    "a class in the configuration": (config(tokenizer_class="AutoProcessor"), "be a tokenizer"),
    "no class at all": (tokenizer(tokenizer_class=["x"]), "must be a tokenizer"),
    "vocabulary elsewhere": (tokenizer(vocab_file="/etc/passwd"), "plain name of a tokenizer's"),
    "vocabulary in .env": (tokenizer(vocab_file=".env"), "plain name of a tokenizer's file"),
    "merges as a path": (tokenizer(merges=".env"), "selects a file"),
    "vocabulary as a path": (tokenizer(vocab="../x"), "selects a file"),
    "a file of another format": (tokenizer(gguf_file="../x.gguf"), "selects a file"),
    "arguments by place": (tokenizer(init_inputs=[".env"]), "selects a file"),
    "an object": (tokenizer(tokenizer_object={"a": 1}), "selects a file"),
    "versions elsewhere": (tokenizer(fast_tokenizer_files=["../tokenizer.4.0.0.json"]), "plain"),
    "options of a part": (tokenizer(mecab_kwargs={"option": "-r .env"}), "may not contain texts"),
    "a folder of a part": (tokenizer(sudachi={"resource_dir": "/"}), "plain name of a tokenizer's"),
    "a file among special tokens": (tokens(vocab_file=".env"), "vocab_file is not a special token"),
    "a name among special tokens": (tokens(name_or_path="org/x"), "is not a special token"),
    "an index out of the folder": (index("../model.safetensors"), "must name safetensors files"),
    "an index into a pickle": (index("pytorch_model.bin"), "must name safetensors files"),
    "an index of numbers": (index(3), "must name safetensors files"),
    "an index of nothing": (content("model.safetensors.index.json", "{}"), "has no weight_map"),
    "an adapter": (content("adapter_config.json", "{}"), "holds an adapter"),
    "a link to a secret": (link("tokenizer_config.json", "../.env"), "leads out of the folder"),
    "a link with a whole path": (link("x.txt", "/etc/passwd"), "leads out of the folder"),
    "a link to a folder": (link("sub", "../outside"), "leads out of the folder"),
    "a link in a loop": (link("loop", "loop"), "cannot be read"),
    "a link to nothing": (link("gone", "nothing"), "cannot be read"),
    "a pipe": (lambda folder: os.mkfifo(folder / "vocab.txt"), "a pipe or a device"),
    "deep nesting": (content("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000), "deeper"),
    "some nesting": (content("config.json", '{"a":' * 33 + "1" + "}" * 33), "deeper than 32"),
    "a key given twice": (content("config.json", '{"a": 1, "a": 2}'), "a key is given twice"),
    "no object": (content("tokenizer_config.json", "[]"), "holds no JSON object"),
    "no JSON": (content("generation_config.json", "{"), "no strict JSON"),
    "no UTF-8": (lambda folder: (folder / "config.json").write_bytes(b"\xff{}"), "no strict JSON"),
    "no weights but a pickle": (lambda folder: pickled(folder, "pytorch_model.bin"),
                                "never read"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_is_refused_before_the_library_sees_it(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, words = REFUSED[name]
    spoil(folder)
    for auto in (AutoModelForCausalLM, AutoTokenizer):
        monkeypatch.setattr(auto, "from_pretrained", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ConfigError, match=words) as caught:
        load_base(str(folder))
    told = str(caught.value)
    assert told.startswith(f"model {folder}: ") and told.isprintable() and len(told) < 500


def test_a_templates_folder_may_hold_no_link_either(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "x.jinja").symlink_to("../../.env")
    with pytest.raises(ConfigError, match="leads out of the folder"):
        load_base(str(folder))


@pytest.mark.parametrize(
    ("limit", "size", "file"),
    [("MAX_SETTINGS", 500, "config.json"), ("MAX_OTHER", 100_000, "tokenizer.json")],
)
def test_a_file_that_is_too_large_is_not_read(
    folder: Path, limit: str, size: int, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_folder, limit, size)
    with pytest.raises(ConfigError, match=f"{file} is larger than {size:,} bytes"):
        load_base(str(folder))


FOREIGN_CODE = f"open({str(Path('ran').name)!r}, 'w').close()\n"


def test_no_code_of_the_folder_runs_and_what_names_it_is_ignored(folder: Path) -> None:
    for place in (
        "modeling_x.py",
        "tokenization_x.py",
        "__init__.py",
        "custom_generate/generate.py",
    ):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(FOREIGN_CODE)
    names = {"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "modeling_x.M"}
    change(folder / "config.json", auto_map=names, vision_config={"auto_map": names})
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.T", None]})
    base = load_base(str(folder))
    assert type(base.model).__module__.startswith("transformers.models.")
    assert type(base.tokenizer).__module__.startswith("transformers.")
    assert not Path("ran").exists()
    loaded = {name.rpartition(".")[2] for name in sys.modules}
    assert not loaded & {"modeling_x", "tokenization_x"}


def test_a_model_that_is_nothing_but_its_own_code_is_no_model(folder: Path) -> None:
    (folder / "modeling_x.py").write_text(FOREIGN_CODE)
    names = {"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "modeling_x.M"}
    change(folder / "config.json", model_type="x", auto_map=names)
    with pytest.raises(ConfigError, match="holds no usable causal LM"):
        load_base(str(folder))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        tokenizer(name_or_path="/home/somebody/model", special_tokens_map_file="/home/x.json"),
        tokenizer(tokenizer_file=None, vocab_file="tokenizer.json", sp_model_kwargs={"alpha": 0.1}),
        tokens(bos_token="<bos>", additional_special_tokens=[]),
        config(attn_implementation="eager", time_step_limit=[0.0, float("inf")]),
        content("pytorch_model.bin", "no pickle at all"),
        link("chat_template.jinja", "tokenizer.json"),
    ],
)
def test_what_published_models_hold_is_read(folder: Path, spoil: Spoil) -> None:
    spoil(folder)
    assert load_base(str(folder)).vocabulary == 2048


def test_weights_in_several_files_are_read(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert named_weights(folder, "x") == shards
    torch.testing.assert_close(load_base(str(folder)).model.state_dict(), model.state_dict())


def test_a_tokenizers_class_reads_files_as_every_tokenizer_does() -> None:
    """No class that a folder may name has a way of its own to files, folders or code."""
    usual = PreTrainedTokenizerBase.from_pretrained.__func__
    found = 0
    for name in filter(_TOKENIZER_CLASS.fullmatch, dir(transformers)):
        try:
            method = getattr(getattr(transformers, name), "from_pretrained", None)
        except ImportError:
            continue  # stands for a class whose own library is not installed
        own = getattr(method, "__func__", None)
        if own is not None and own.__module__.startswith("transformers.tokenization"):
            assert own is usual, name
            found += 1
    assert found > 50


def vocabulary_of(folder: Path) -> dict[str, int]:
    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False).get_vocab()


def model_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        str(folder), trust_remote_code=False, use_safetensors=True
    )


def test_the_library_alone_reads_a_tokenizer_outside_of_the_folder(folder: Path) -> None:
    place = "../outside/tokenizer.4.0.0.json"
    change(folder / "tokenizer_config.json", fast_tokenizer_files=[place])
    assert CANARY in vocabulary_of(without(folder / "tokenizer.json"))
    change(folder / "tokenizer_config.json", fast_tokenizer_files=[])
    change(
        folder / "special_tokens_map.json", tokenizer_file=str(outside(folder) / Path(place).name)
    )
    assert CANARY in vocabulary_of(folder)


def test_the_library_alone_reads_a_secret_into_a_tokenizer(folder: Path) -> None:
    without(folder / "tokenizer.json")
    (folder / "vocab.json").write_text('{"<unk>": 0, "a": 1}')
    (folder / "merges.txt").write_text("#version\n")
    change(folder / "tokenizer_config.json", tokenizer_class="CTRLTokenizer")
    change(folder / "special_tokens_map.json", merges_file=".env")
    read = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    assert (CANARY, "secret") in read.bpe_ranks


def test_the_library_alone_unpickles_weights_although_safetensors_are_asked_for(
    folder: Path,
) -> None:
    names = pickled(folder, "adapter_model.bin")
    change(folder / "config.json", transformers_weights="adapter_model.bin")
    assert model_of(folder).num_parameters() > 0
    change(folder / "config.json", transformers_weights=None)
    write_index(folder, names, "adapter_model.bin")
    assert model_of(folder).num_parameters() > 0


def test_the_library_alone_reads_weights_outside_of_the_folder(folder: Path) -> None:
    write_index(folder, moved_out(folder, outside(folder)), "../outside/model.safetensors")
    assert model_of(folder).num_parameters() > 0


def test_the_library_alone_takes_a_model_for_a_tokenizer_and_unpickles_it(folder: Path) -> None:
    pickled(folder, "pytorch_model.bin")
    change(folder / "tokenizer_config.json", tokenizer_class="LlamaForCausalLM")
    read = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    assert isinstance(read, torch.nn.Module)


def test_the_library_alone_would_fetch_a_kernel_that_the_folder_names(folder: Path) -> None:
    change(folder / "config.json", attn_implementation="org/kernel")
    with pytest.raises(ImportError, match="kernels"):
        model_of(folder)


def test_the_library_alone_follows_an_adapter_to_another_base(folder: Path) -> None:
    elsewhere = folder.rename(outside(folder) / "model")
    folder.mkdir()
    change(folder / "adapter_config.json", base_model_name_or_path=str(elsewhere), peft_type="LORA")
    with pytest.raises(OSError, match=r"adapter_model\.safetensors"):
        model_of(folder)


def test_the_library_alone_reads_another_configuration(folder: Path) -> None:
    shutil.copy(folder / "config.json", folder / "config.4.0.0.json")
    change(folder / "config.4.0.0.json", canary=CANARY, attn_implementation=None)
    change(folder / "config.json", configuration_files=["config.4.0.0.json"])
    assert model_of(folder).config.canary == CANARY
    check_model_folder(folder, "x")
    change(folder / "config.4.0.0.json", attn_implementation="org/kernel")
    with pytest.raises(ConfigError, match=r"config\.4\.0\.0\.json: attn_implementation"):
        check_model_folder(folder, "x")


def test_a_snapshot_of_the_hub_cache_may_link_to_its_blobs_and_nowhere_else(folder: Path) -> None:
    cache = folder.parent / "models--org--name"
    snapshot, blobs = cache / "snapshots" / ("0" * 40), cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    check_model_folder(snapshot, "x")
    (blobs / "9").symlink_to(folder.parent / ".env")
    (snapshot / "vocab.txt").symlink_to("../../blobs/9")
    with pytest.raises(ConfigError, match=r"vocab\.txt is a link that leads out"):
        check_model_folder(snapshot, "x")


def test_a_name_that_would_steer_the_terminal_is_shown_as_an_escape(folder: Path) -> None:
    change(folder / "config.json", **{"\x1b[2J_implementation": "\u202e/x"})
    with pytest.raises(ConfigError) as caught:
        load_base(str(folder))
    assert str(caught.value).isprintable() and "\\x1b[2J" in str(caught.value)
    assert json.loads((folder / "config.json").read_text())["\x1b[2J_implementation"] == "\u202e/x"
