#!/usr/bin/env bash
# transformers 5.23.0: a hand-added `rope_scaling` takes the rotary base away
#
# Where two meet: the recipe for long context that model cards of the Qwen family give ("add
# rope_scaling with rope_type yarn to config.json"), and a config.json that transformers 5 saved.
# Guess: `rope_scaling` is laid over `rope_parameters`, so the rotary base stays 5000000. This was
# expected until the source was read; it was not written down before that.
# Seen: `rope_scaling` replaces `rope_parameters` as a whole. The base was only in there, so the
# model runs on 10000.0, the default of the class. The warning that is printed is about another
# thing (the ratio of lengths). On the file as the hub has it, with a top-level `rope_theta`, the
# recipe keeps 5000000.
# Output: "hub form 5000000" and "saved form 10000.0".
# Source: convert_rope_params_to_dict in the package's modeling_rope_utils.py, which takes
# `rope_scaling` or else `rope_parameters`, and the base from a top-level `rope_theta` or else from
# the class.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q transformers==5.23.0
cat > look.py <<'PYTHON'
import json
from pathlib import Path

from transformers import AutoConfig

FILE = Path("model/config.json")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def base_with_recipe(settings):
    FILE.write_text(json.dumps(settings | {"rope_scaling": dict(YARN)}))
    return AutoConfig.from_pretrained("model").rope_parameters["rope_theta"]


FILE.parent.mkdir()
hub = {"model_type": "qwen3", "max_position_embeddings": 131072, "rope_theta": 5000000}
print("hub form", base_with_recipe(hub))
FILE.write_text(json.dumps(hub))
AutoConfig.from_pretrained("model").save_pretrained("model")
print("saved form", base_with_recipe(json.loads(FILE.read_text())))
PYTHON
HF_HUB_OFFLINE=1 env/bin/python look.py 2> warnings.txt | tee seen.txt
diff seen.txt <(printf 'hub form 5000000\nsaved form 10000.0\n')
