"""A base from a GGUF file, or in few bits: what is read, how it is known, what is refused."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from fake_hub import asked_instead
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from huggingface_hub import constants
from tiny_gguf import write_gguf
from transformers import LlamaConfig, LlamaForCausalLM

from gradroute.config.run_config import load_config
from gradroute.errors import ConfigError, MachineError
from gradroute.models import files
from gradroute.models.base import Base, load_base, load_base_of, load_tokenizer, packed_bits
from torture.bases import save_base, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore:.*builtin type swig:DeprecationWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(folder / "tiny.gguf", tiny_llama(2048, 64, spread=0.3))
    return folder


@pytest.fixture(scope="module")
def base(made: Path) -> Base:
    return load_base(str(made), gguf_file="tiny.gguf")


def test_a_gguf_base_has_the_logits_and_the_tokens_of_the_model_it_was_made_from(base: Base):
    original = tiny_llama(2048, 64, spread=0.3)
    ids = torch.randint(3, 2048, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(base.model(ids).logits, original(ids).logits, rtol=0, atol=0)
    text = "Once upon a time, Lily's dog ran!\n HELLO"
    embedded = load_base("embedded").tokenizer
    for tokenizer in (base.tokenizer, embedded):  # what a text begins with is the file's affair
        assert tokenizer.encode(text, add_special_tokens=False) == embedded.encode(text)[1:]


def test_a_gguf_base_is_one_like_any_other_once_it_is_read(base: Base, tmp_path: Path):
    assert packed_bits(base.model) == "" and str(base) == "69.5k parameters, float32 on cpu"
    base.model.save_pretrained(tmp_path / "saved")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again.state_dict(), base.model.state_dict(), rtol=0, atol=0)


def test_a_gguf_base_is_known_by_the_sha256_of_its_file_and_of_settings_beside_it(
    made: Path, base: Base, tmp_path: Path
):
    own = hashlib.sha256((made / "tiny.gguf").read_bytes()).hexdigest()
    assert base.identity == f"sha256 {own}"
    shutil.copy(made / "tiny.gguf", tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    assert files.identity_of(tmp_path, "tiny.gguf").startswith(f"{base.identity}, settings")


def test_weights_in_blocks_are_unpacked_to_what_they_stand_for(tmp_path: Path):
    config = LlamaConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    write_gguf(tmp_path / "packed.gguf", model, packed=True)
    found = load_base(str(tmp_path), gguf_file="packed.gguf").model.state_dict()
    kind = GGMLQuantizationType.Q8_0
    for key in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        weight = model.state_dict()[key].numpy()
        expected = torch.from_numpy(dequantize(quantize(weight, kind), kind))
        assert torch.equal(found[key], expected) and not torch.equal(
            found[key], model.state_dict()[key]
        )


def test_a_gguf_file_of_a_hub_repository_is_fetched_alone(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(made / "tiny.gguf", folder)
    (folder / "other.gguf").write_bytes(b"x")
    (folder / "model.safetensors").write_bytes(b"x")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with asked_instead(monkeypatch) as hub:
        hub.serve("org/name", folder)
        found = load_base("org/name", gguf_file="tiny.gguf")
        alone = load_tokenizer("org/name", "tiny.gguf")
    assert found.identity == f"hub revision {hub.commit}, tiny.gguf"
    assert hub.fetched == {"tiny.gguf"}
    assert alone("a fox").input_ids == found.tokenizer("a fox").input_ids


@pytest.mark.parametrize(
    ("gguf_file", "sentence"),
    [
        ("../tiny.gguf", "gguf_file: the plain name of a file in the model's folder"),
        ("tiny.safetensors", "gguf_file: the plain name"),
        ("absent.gguf", "it has no GGUF file absent.gguf; those there are garbage.gguf, tiny.gguf"),
        (
            "garbage.gguf",
            "garbage.gguf is not a GGUF file: it does not begin with the letters GGUF",
        ),
        (None, "no weights as safetensors, but GGUF files; give gguf_file=garbage.gguf or another"),
    ],
)
def test_a_gguf_file_that_cannot_be_read_is_named(
    made: Path, tmp_path: Path, gguf_file: str | None, sentence: str
):
    shutil.copy(made / "tiny.gguf", tmp_path)
    (tmp_path / "garbage.gguf").write_bytes(bytes(100))
    with pytest.raises(ConfigError, match=sentence):
        load_base(str(tmp_path), gguf_file=gguf_file)


def test_a_gguf_file_whose_tensors_are_cut_short_is_a_sentence(made: Path, tmp_path: Path):
    whole = (made / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-5000])
    with pytest.raises(ConfigError, match=r"cut\.gguf is"):
        load_base(str(tmp_path), gguf_file="cut.gguf")


def test_a_file_in_place_of_a_folder_is_answered_with_the_two_settings(made: Path):
    with pytest.raises(ConfigError, match=rf"model={made}, and gguf_file=tiny\.gguf"):
        load_base(str(made / "tiny.gguf"))


def absent(*packages: str):
    return lambda name: None if name in packages else object()


@pytest.mark.parametrize(
    ("settings", "missing", "sentence"),
    [
        ({"gguf_file": "x.gguf"}, "gguf", r"package gguf, .*: pip install 'gradroute\[gguf\]'"),
        ({"quantize": "4bit"}, "bitsandbytes", r"in 4bit, .*: pip install 'gradroute\[quant\]'"),
        ({"gguf_file": "x.gguf"}, "none", "package kernels is installed, with which transformers"),
        ({"quantize": "8bit"}, "kernels", "quantize=8bit needs a CUDA device"),
    ],
)
def test_what_this_machine_lacks_is_named_with_what_to_do(
    settings: dict[str, str], missing: str, sentence: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "find_spec", absent(missing))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match=sentence):
        load_base("embedded", **settings)  # pyright: ignore[reportArgumentType]


def test_a_gguf_file_is_not_quantized_again():
    with pytest.raises(ConfigError, match="gguf_file and quantize=4bit do not go together"):
        load_base("embedded", gguf_file="x.gguf", quantize="4bit")


def test_weights_packed_in_a_way_that_needs_code_from_elsewhere_are_refused(tmp_path: Path):
    folder = save_base(tmp_path / "model", 64, 32)
    settings = (folder / "config.json").read_text().rstrip().removesuffix("}")
    packed = ', "quantization_config": {"quant_method": "mxfp4"}}'
    (folder / "config.json").write_text(settings + packed)
    with pytest.raises(
        ConfigError, match=r"quantization_config\.quant_method is 'mxfp4', which is"
    ):
        load_base(str(folder))


def test_a_config_names_the_whole_base(made: Path):
    config = load_config(None, [f"model={made}", "gguf_file=tiny.gguf"])
    assert load_base_of(config).identity.startswith("sha256 ")
    broken = load_config(None, ["start_adapter=/nowhere/at/all"])
    with pytest.raises(
        ConfigError, match="start_adapter: /nowhere/at/all: there is no such folder"
    ):
        load_base_of(broken)
