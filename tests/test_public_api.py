import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import gradroute

PUBLIC = {
    "AblationMode",
    "AdapterSpec",
    "ConfigError",
    "DataError",
    "Example",
    "GradrouteError",
    "Interrupted",
    "MachineError",
    "NAMED_POLICIES",
    "NumericError",
    "Route",
    "RoutingPolicy",
    "RunConfig",
    "__version__",
    "ablated",
    "adapter_parameters",
    "adapter_state",
    "apply_updates",
    "attach_adapters",
    "embedded_model",
    "load_adapter_state",
    "load_config",
    "read_examples",
    "route_adapters",
    "routed",
    "standard_modes",
}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_public_name_is_there(name: str) -> None:
    assert getattr(gradroute, name) is getattr(gradroute, name)
    assert name in dir(gradroute)


def test_type_checkers_see_exactly_the_public_names() -> None:
    tree = ast.parse(Path(gradroute.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen | {"__version__"} == PUBLIC


def test_the_version_is_that_of_the_package() -> None:
    assert gradroute.__version__ == metadata.version("gradroute")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'gradroute' has no attribute 'routted'"):
        _ = gradroute.routted  # pyright: ignore[reportAttributeAccessIssue]


LOOP = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from gradroute import AdapterSpec, RoutingPolicy, ablated, attach_adapters, routed
base = LlamaForCausalLM(LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8,
    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0))
# The second name is a part of PEFT's own prefix, of which PEFT warns.
model = attach_adapters(base, {"good": AdapterSpec(rank=2), "a": AdapterSpec(rank=2)}).train()
ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
table = {"x": {"good": "update", "a": "freeze"}}
with routed(model, RoutingPolicy.parse(table, ["good", "a"]), ["x", "x"]):
    model(input_ids=ids, labels=ids).loss.backward()
with ablated(model.eval(), "good_ablated"):
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2)
"""


def test_a_loop_of_ones_own_hears_nothing_of_other_libraries() -> None:
    # A new interpreter: what libraries say they say as they are imported first.
    ran = subprocess.run(
        [sys.executable, "-c", LOOP], capture_output=True, text=True, timeout=300, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
