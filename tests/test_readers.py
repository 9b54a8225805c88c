"""What the pages say of other tools is what their result files say."""

import json
from pathlib import Path

import pytest

from gradroute.export.gguf_layout import ARCHITECTURES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "readers"
TOOLS = [path for path in RESULTS.glob("*.json") if not path.name.startswith("gguf_")]


def page(name: str) -> str:
    return (ROOT / "docs" / "howto" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.stem)
def test_each_tool_stands_in_the_table_with_its_differences(path):
    result = json.loads(path.read_text())
    version = result["version"].partition("-3408")[0]  # without the build of openvino-genai
    rows = [row for row in page("serve.md").split("\n") if row.startswith(f"| {version} |")]
    failed = bool(result["note"].startswith("it loads no")) + bool(result["failed"])
    assert len(rows) == len(result["differences"]) + failed and result["differences"]
    for numbers in result["differences"].values():
        if "tokens" in numbers:
            told = f"{numbers['equal']} of {numbers['tokens']} greedy tokens equal"
        else:
            own = numbers.get("probability", numbers.get("share_of_the_largest"))
            told = f"| {own:.0e} "
            assert own < 1e-5 and not numbers.get("decided_tokens_differ")
        assert any(told in row for row in rows)


def test_at_least_eight_tools_were_tried():
    assert len(TOOLS) >= 8


def test_each_family_of_the_page_was_held_against_llama_cpps_converter():
    found = json.loads((RESULTS / "gguf_families.json").read_text())
    assert {one["model_type"] for one in found.values()} == set(ARCHITECTURES)
    other = [name for name, one in found.items() if one["tensors"] != "equal"]
    assert other == ["gpt2"] and float(found["gpt2"]["adapter"]) < 1e-4
    ran = [one for one in found.values() if one["base"][:1].isdigit()]
    right = [one for one in ran if float(one["base"]) < 3e-4]
    assert all(float(one["adapter"]) < 3e-4 for one in right)
    off = sorted(one["model_type"] for one in ran if one not in right)
    assert f"llama.cpp ran {len({one['model_type'] for one in right})} of these" in page("serve.md")
    assert ",".join(off) in "".join(page("serve.md").split())
    assert ",".join(ARCHITECTURES) in "".join(page("export.md").split())
    assert f"each of {len(ARCHITECTURES)} families" in page("serve.md")


def test_smollm2_is_within_a_thousandth_on_a_base_at_f16():
    found = json.loads((RESULTS / "gguf_smollm2.json").read_text())
    differences = found["differences"]["base F16, run on F16"]
    assert len(differences) == 4 and max(differences.values()) < 5e-6 < found["full_from_base"]
