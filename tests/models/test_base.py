"""The base model: from a folder or the hub's cache, whole, finite, and with libraries that fit."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import huggingface_hub
import pytest
import torch
from fake_hub import Hub, asked_instead
from hostile_models import change, tiny_model, write_index
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from safetensors.torch import load_file, save_file

from gradroute.errors import ConfigError, MachineError, NumericError
from gradroute.models import base as module
from gradroute.models.base import NEEDED, check_versions, load_base, load_tokenizer, preload_base
from gradroute.routing.adapters import AdapterSpec, attach_adapters

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_CanaryCanaryCanaryCanary1234"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def cached(folder: Path, cache: Path) -> Path:
    """Lay a model out as the hub's cache keeps it: every file a link to a blob."""
    repository = cache / "models--org--name"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    for part in (snapshot, blobs, repository / "refs"):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in folder.iterdir():
        name = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blobs / name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / name)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no other."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_a_local_folder_is_known_by_its_weights_settings_and_tokenizer(folder: Path) -> None:
    base = load_base(str(folder))
    assert load_base(str(folder)).identity == base.identity
    assert not any(weight.requires_grad for weight in base.model.parameters())
    assert not base.model.training
    for name in ("config.json", "tokenizer.json"):
        before = load_base(str(folder)).identity
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write("\n")
        assert load_base(str(folder)).identity != before
    (folder / "README.md").write_text("no part of the model", encoding="utf-8")
    before = load_base(str(folder)).identity
    (folder / "README.md").write_text("nor is this", encoding="utf-8")
    assert load_base(str(folder)).identity == before


def test_a_hub_model_is_read_from_the_cache_and_known_by_its_revision(
    folder: Path, cache: Path
) -> None:
    cached(folder, cache)
    base = load_base("org/name")
    assert base.identity == f"hub revision {COMMIT}"
    local = load_base(str(folder))
    torch.testing.assert_close(base.model.state_dict(), local.model.state_dict(), rtol=0, atol=0)
    assert base.tokenizer.get_vocab() == local.tokenizer.get_vocab()


def test_a_hub_model_is_checked_like_any_strangers_folder(folder: Path, cache: Path) -> None:
    change(folder / "config.json", attn_implementation="org/kernel")
    cached(folder, cache)
    with pytest.raises(ConfigError, match=r"model org/name: config\.json: attn_implementation"):
        load_base("org/name")


def test_a_link_of_the_cache_that_leads_to_a_secret_is_refused(folder: Path, cache: Path) -> None:
    snapshot = cached(folder, cache)
    (cache.parent / ".env").write_text("HF_TOKEN=x\n")
    (snapshot / "merges.txt").symlink_to(cache.parent / ".env")
    with pytest.raises(ConfigError, match=r"merges\.txt is a link that leads out"):
        load_base("org/name")


def test_a_hub_model_without_its_weights_is_no_model(folder: Path, cache: Path) -> None:
    (folder / "model.safetensors").unlink()
    cached(folder, cache)
    with pytest.raises((ConfigError, MachineError), match="model org/name"):
        load_base("org/name")


def test_a_model_that_is_not_in_the_cache_is_missed_in_one_line(cache: Path) -> None:
    with pytest.raises(MachineError) as caught:
        load_base("org/absent")
    told = str(caught.value)
    for word in ("org/absent", "HF_TOKEN", ".env", "https://huggingface.co/org/absent", "none was"):
        assert word in told
    assert told.isprintable()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine in place of the one that libraries ask."""
    with asked_instead(monkeypatch) as hub:
        yield hub


def test_a_hub_model_is_fetched_at_one_revision_and_only_what_is_read(
    folder: Path, cache: Path, hub: Hub
) -> None:
    for name in ("modeling_x.py", "pytorch_model.bin", "consolidated.safetensors", "x/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    hub.serve("org/name", folder)
    base = load_base("org/name")
    assert base.identity == f"hub revision {hub.commit}"
    settings = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert hub.fetched == settings | {"model.safetensors"}
    hub.asked.clear()
    assert load_base("org/name").identity == base.identity
    assert hub.fetched == set()


def test_a_tokenizer_is_had_without_any_weights(folder: Path, cache: Path, hub: Hub) -> None:
    hub.serve("org/name", folder)
    alone = load_tokenizer("org/name")
    assert "model.safetensors" not in hub.fetched
    (folder / "model.safetensors").unlink()
    assert load_tokenizer(str(folder))("a fox").input_ids == alone("a fox").input_ids
    for name, value in (("tokenizer.json", "{}"), ("tokenizer_config.json", '{"vocab": "x"}')):
        (folder / name).write_text(value)
        with pytest.raises(ConfigError, match="model "):
            load_tokenizer(str(folder))


def test_of_a_hub_model_that_is_refused_no_weights_are_fetched(
    folder: Path, cache: Path, hub: Hub
) -> None:
    change(folder / "config.json", attn_implementation="org/kernel")
    hub.serve("org/name", folder)
    with pytest.raises(ConfigError, match="attn_implementation selects code"):
        load_base("org/name")
    assert "config.json" in hub.fetched and "model.safetensors" not in hub.fetched


def test_the_parts_that_an_index_names_are_fetched(folder: Path, cache: Path, hub: Hub) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "part-1.safetensors", {"format": "pt"})
    write_index(folder, list(weights), "part-1.safetensors")
    hub.serve("org/name", folder)
    load_base("org/name")
    assert {"model.safetensors.index.json", "part-1.safetensors"} <= hub.fetched


def test_a_gated_model_is_asked_for_with_the_token_and_its_terms_are_named(
    cache: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache.parent / ".env").write_text(f"HF_TOKEN={TOKEN}\n")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(MachineError) as caught:
        load_base("org/gated")
    assert {token for _, token in hub.asked} == {f"Bearer {TOKEN}"}
    told = str(caught.value)
    assert "accept its terms" in told and "one was found" in told and "restricted" in told
    assert TOKEN not in told and "Canary" not in told


def test_offline_nothing_is_asked_for(
    cache: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(MachineError):
        load_base("org/gated")
    assert hub.asked == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(folder: Path, number: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = number
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NumericError, match=r"1 numbers of its weight model\.norm\.weight are not"):
        load_base(str(folder))


def test_weights_whose_sum_is_too_large_for_their_type_are_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = 3e38
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert load_base(str(folder)).vocabulary == 2048


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lack 1 of its weights, such as .*up_proj"):
        load_base(str(folder))


@pytest.mark.parametrize("damage", ["cut", "appended", "empty", "header"])
def test_damaged_weights_are_a_sentence(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[:-10],
            "appended": whole + b"x",
            "empty": b"",
            "header": b"\xff" * 8 + whole[8:],
        }[damage]
    )
    with pytest.raises(ConfigError, match="the folder holds no usable causal LM"):
        load_base(str(folder))


def test_a_model_that_is_no_causal_one_is_a_sentence_that_leads_on(folder: Path) -> None:
    for kind, name in (
        ("llava", "LlavaConfig"),
        ("qwen2_5_vl", "Qwen2_5_VLConfig"),
        ("t5", "T5Config"),
    ):
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(ConfigError, match=rf"no causal LM for a {name}\. .* language model"):
            load_base(str(folder))


def test_a_configuration_that_fits_no_model_is_a_sentence(folder: Path) -> None:
    for settings in ({"hidden_size": "eight"}, {"num_hidden_layers": -1}, {"model_type": "bert"}):
        change(folder / "config.json", **settings)
        with pytest.raises(ConfigError, match="the folder holds no usable causal LM"):
            load_base(str(folder))


@pytest.mark.parametrize("package", NEEDED)
def test_a_library_that_is_too_old_is_named_with_both_versions(
    package: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = metadata.version
    monkeypatch.setattr(
        module.metadata, "version", lambda name: "0.7.9+cpu" if name == package else found(name)
    )
    least = ".".join(map(str, NEEDED[package]))
    with pytest.raises(MachineError, match=rf"{package} 0\.7\.9\+cpu is installed.*{least}"):
        load_base(str(folder))


def test_the_libraries_of_this_machine_are_recent_enough() -> None:
    check_versions()


def test_who_gets_a_preloaded_base_shares_its_weights_and_nothing_else(monkeypatch):
    monkeypatch.setattr(module, "_preloaded", {})
    fresh = load_base("embedded")
    preload_base("embedded")
    one, other = load_base("embedded"), load_base("embedded")
    ids = torch.tensor([[1, 5, 9]])
    assert one.identity == other.identity == fresh.identity
    with torch.no_grad():
        assert torch.equal(one.model(ids).logits, fresh.model(ids).logits)
    model = attach_adapters(one.model, {"good": AdapterSpec(rank=2)})
    assert not any("lora" in name for name, _ in other.model.named_modules())
    weights = {weight.data_ptr() for weight in other.model.parameters()}
    assert weights <= {weight.data_ptr() for weight in model.parameters()}
    assert not any(weight.requires_grad for weight in other.model.parameters())


def test_preloaded_weights_that_somebody_changed_are_not_handed_out(monkeypatch):
    monkeypatch.setattr(module, "_preloaded", {})
    fresh = load_base("embedded")
    preload_base("embedded")
    # Not even by a way that torch does not count.
    next(load_base("embedded").model.parameters()).data[0] += 1.0
    weights = zip(load_base("embedded").model.parameters(), fresh.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_a_base_that_is_asked_for_in_another_way_is_loaded(monkeypatch):
    monkeypatch.setattr(module, "_preloaded", {})
    preload_base("embedded")
    [preloaded] = [one for one, _ in module._preloaded.values()]
    weights = {weight.data_ptr() for weight in preloaded.model.parameters()}
    other = load_base("embedded", on_cpu=True)
    assert weights.isdisjoint(weight.data_ptr() for weight in other.model.parameters())
