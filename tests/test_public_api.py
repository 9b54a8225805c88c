import ast
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
