"""Starting from a LoRA adapter that is there already, and every one that is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_families import tiny_family
from torch import Tensor, nn
from transformers import PreTrainedModel

from gradroute.config.sections import AdapterConfig
from gradroute.errors import ConfigError, NumericError
from gradroute.models.initial_adapters import merge_start_adapter, put_starts
from gradroute.routing.adapters import AdapterSpec, ablated, attach_adapters
from gradroute.routing.layers import lora_layers
from gradroute.untrusted.adapter_folder import read_adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
]
TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def adapted(family: str = "llama", **settings: Any) -> PeftModel:
    """A plain PEFT model with an adapter that matters."""
    base = tiny_family(family, dtype=torch.float32)
    own = {"r": 3, "lora_alpha": 5, "target_modules": TARGETS[family], **settings}
    model = get_peft_model(base, LoraConfig(**own))
    assert isinstance(model, PeftModel)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    adapted().save_pretrained(str(folder))
    return folder


def logits(model: nn.Module) -> Tensor:
    ids = torch.arange(3, 19).view(2, 8)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def close(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("rslora", [False, True])
def test_a_merged_start_is_what_peft_runs(family: str, rslora: bool, tmp_path: Path):
    model = adapted(family, use_rslora=rslora)
    model.save_pretrained(str(tmp_path))
    base = tiny_family(family, dtype=torch.float32)
    before = logits(base)
    identity = merge_start_adapter(base, str(tmp_path))
    assert close(logits(base), logits(model)) and not close(before, logits(model))
    assert identity == read_adapter(str(tmp_path), "x").identity


def routed_start(family: str, place: Path, **shape: Any) -> PeftModel:
    specs = {"good": AdapterSpec(rank=3, **shape), "bad": AdapterSpec(rank=2)}
    base = tiny_family(family, dtype=torch.float32)
    model = attach_adapters(base, specs, targets=TARGETS[family], layers="all").eval()
    put_starts(model, {"good": AdapterConfig(start=str(place))})
    return model


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("shape", [{}, {"alpha": 1.0}, {"rslora": True}])
def test_an_adapter_that_starts_from_another_does_the_same_at_any_scaling(
    family: str, shape: dict[str, Any], tmp_path: Path
):
    plain = adapted(family)
    plain.save_pretrained(str(tmp_path))
    assert close(logits(routed_start(family, tmp_path, **shape)), logits(plain))


def test_only_the_named_adapter_starts_elsewhere(saved: Path):
    model = routed_start("llama", saved)
    with ablated(model, "good_ablated"):
        assert torch.equal(logits(model), logits(tiny_family("llama", dtype=torch.float32)))


def test_a_start_of_another_rank_names_both(saved: Path):
    base = tiny_family("llama", dtype=torch.float32)
    model = attach_adapters(base, {"good": AdapterSpec(rank=4)}, targets=TARGETS["llama"])
    with pytest.raises(ConfigError, match=r"is of rank 3, and adapters\.good\.rank is 4; give"):
        put_starts(model, {"good": AdapterConfig(start=str(saved))})


def test_a_start_on_other_modules_names_them(saved: Path):
    base = tiny_family("llama", dtype=torch.float32)
    model = attach_adapters(base, {"good": AdapterSpec(rank=3)}, targets=["q_proj", "v_proj"])
    sentence = (
        r"2 tensors that the run's adapters have are missing "
        r"\(model\.layers\.1\.self_attn\.v_proj\); 6 tensors that they do not have are present "
        r"\(model\.layers\.0\.mlp\.down_proj, "
    )
    with pytest.raises(ConfigError, match=sentence):
        put_starts(model, {"good": AdapterConfig(start=str(saved))})


def changed(saved: Path, folder: Path, **settings: Any) -> Path:
    shutil.copytree(saved, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"peft_type": "IA3"}, "is of the kind 'IA3'; only LoRA is read"),
        ({"use_dora": True}, "has a DoRA magnitude"),
        ({"bias": "all"}, r"has trained biases of the base \(bias: 'all'\)"),
        ({"lora_bias": True}, "has a bias in the adapter"),
        ({"modules_to_save": ["lm_head"]}, "whole modules trained beside the adapter"),
        ({"trainable_token_indices": [1]}, "trained rows of the embedding"),
        ({"layer_replication": [[0, 1]]}, "repeated layers"),
        ({"target_parameters": ["experts.w"]}, "adapters on bare parameters"),
        ({"rank_pattern": {"q_proj": 4}}, "a rank of its own for some modules"),
        ({"alpha_pattern": {"q_proj": 4}}, "an alpha of its own for some modules"),
        ({"init_lora_weights": "pissa_niter_4"}, "a base of its own"),
        ({"r": 0}, "must have a rank r and a lora_alpha above 0"),
        ({"lora_alpha": float("inf")}, "must have a rank r and a lora_alpha above 0"),
        (
            {"r": 4},
            r"is \[3, 24\] \(torch\.float32\), and the rank of its adapter_config\.json is 4",
        ),
    ],
)
def test_an_adapter_that_is_more_than_plain_lora_is_refused_by_name(
    settings: dict[str, Any], sentence: str, saved: Path, tmp_path: Path
):
    with pytest.raises(ConfigError, match=sentence):
        read_adapter(str(changed(saved, tmp_path / "a", **settings)), "start_adapter")


def rewritten(saved: Path, folder: Path, how: str) -> Path:
    shutil.copytree(saved, folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    first = next(iter(tensors))
    if how == "magnitude":
        tensors[first.split(".lora_")[0] + ".lora_magnitude_vector"] = torch.ones(3)
    elif how == "half":
        del tensors[first]
    elif how == "whole numbers":
        tensors[first] = tensors[first].to(torch.int32)
    elif how == "nan":
        tensors[first][0, 0] = torch.nan
    save_file({} if how == "empty" else tensors, path)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif how == "pickle":
        path.rename(folder / "adapter_model.bin")
    elif how == "no config":
        (folder / "adapter_config.json").unlink()
    elif how == "link":
        shutil.copy(path, folder.parent / "outside")
        path.unlink()
        path.symlink_to(folder.parent / "outside")
    return folder


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("magnitude", "1 of its tensors are not an A or B of a LoRA adapter, such as .*magnitude"),
        ("half", "without base_model"),
        ("whole numbers", r"\(torch\.int32\), and the rank"),
        ("empty", "holds no tensors"),
        ("cut", r"adapter_model\.safetensors cannot be read"),
        ("pickle", r"pickle files \(adapter_model\.bin\) are never read"),
        ("no config", r"it has no adapter_config\.json"),
        ("link", "is a link that leads out of the folder"),
    ],
)
def test_files_that_hold_no_whole_adapter_are_refused(
    how: str, sentence: str, saved: Path, tmp_path: Path
):
    with pytest.raises(ConfigError, match=sentence):
        read_adapter(str(rewritten(saved, tmp_path / "a", how)), "start_adapter")


def test_a_weight_of_a_start_that_is_not_finite_is_named(saved: Path, tmp_path: Path):
    with pytest.raises(NumericError, match=r"numbers of its base_model.*lora_A\.weight are not"):
        read_adapter(str(rewritten(saved, tmp_path / "a", "nan")), "start_adapter")


def renamed(saved: Path, folder: Path, old: str, new: str) -> str:
    shutil.copytree(saved, folder)
    path = folder / "adapter_model.safetensors"
    save_file({key.replace(old, new): value for key, value in load_file(path).items()}, path)
    return str(folder)


def other(hidden: int = 16, vocabulary: int = 24) -> PreTrainedModel:
    wider = hidden // 16
    return tiny_family("llama-tied", vocabulary=vocabulary, dtype=torch.float32, wider=wider)


@pytest.mark.parametrize(
    ("model", "old", "new", "sentence"),
    [
        (other(), "q_proj", "w_proj", "this one has no module .*w_proj"),
        (other(), "self_attn.q_proj", "input_layernorm", "kind LlamaRMSNorm; only linear"),
        (other(32), "", "", r"its update of .* is \[16, 24\], the weight \[32, 48\]"),
        (
            other(vocabulary=16),
            "model.layers.0.self_attn.q_proj",
            "lm_head",
            "lm_head, whose weight is tied to that of model.embed_tokens",
        ),
    ],
)
def test_a_start_of_another_model_is_not_merged_even_in_part(
    model: PreTrainedModel, old: str, new: str, sentence: str, saved: Path, tmp_path: Path
):
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    with pytest.raises(ConfigError, match=sentence):
        merge_start_adapter(model, renamed(saved, tmp_path / "a", old, new))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_merge_into_bfloat16_is_summed_in_float32_and_rounded_once(saved: Path):
    exact, rounded = (tiny_family("llama", dtype=d) for d in (torch.float64, torch.bfloat16))
    key = "model.layers.0.self_attn.q_proj"
    down, up = read_adapter(str(saved), "x").factors[key]
    weight = rounded.get_parameter(f"{key}.weight")
    before = weight.detach().double()
    merge_start_adapter(rounded, str(saved))
    expected = (before + 5 / 3 * (up.double() @ down.double())).to(torch.bfloat16)
    assert torch.ne(weight, expected).float().mean() < 0.01  # a tie may fall to the other side
    merge_start_adapter(exact, str(saved))
    assert next(exact.parameters()).dtype == torch.float64


def test_rslora_scales_by_the_root_of_the_rank_and_plain_peft_reads_it_back(tmp_path: Path):
    spec = {"good": AdapterSpec(rank=4, alpha=6.0, rslora=True)}
    model = attach_adapters(tiny_family("llama", dtype=torch.float32), spec).eval()
    assert next(iter(lora_layers(model).values())).scaling == {"good": 3.0}
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B["good"].weight.fill_(0.1)  # pyright: ignore
    model.save_pretrained(str(tmp_path))
    base = tiny_family("llama", dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, str(tmp_path / "good"))
    assert close(logits(plain.eval()), logits(model))
