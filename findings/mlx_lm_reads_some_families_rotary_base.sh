#!/usr/bin/env bash
# mlx-lm 0.32.2: of configs that transformers 5.23.0 saved, it reads the rotary base of some families
#
# Where two meet: config.json of transformers 5.23.0, which has the rotary base in `rope_parameters`
# alone, and the model classes of mlx-lm 0.32.2.
# Guess: none was written down. That Llama falls back to 10000 was known from a report before this
# was run; that families differ, and how, was seen here.
# Seen: each family has its own reader. Qwen 3 and LFM2-like ones look there. Llama, Qwen 2 and
# Gemma 2 take their defaults without a word; Granite stops for want of a required `rope_theta`.
# Output: qwen3 654321, llama 10000, qwen2 1000000, gemma2 10000, granite TypeError.
# Source: the ModelArgs class of each file under mlx_lm/models in the package.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q transformers==5.23.0 mlx-lm==0.32.2 'mlx[cpu]==0.32.4'
cat > look.py <<'PYTHON'
import json
from importlib import import_module
from pathlib import Path

from transformers import CONFIG_MAPPING

for family in ("qwen3", "llama", "qwen2", "gemma2", "granite"):
    CONFIG_MAPPING[family].from_dict({"rope_theta": 654321, "head_dim": 64}).save_pretrained(family)
    settings = json.loads(Path(family, "config.json").read_text())
    assert settings["rope_parameters"]["rope_theta"] == 654321
    try:
        read = import_module(f"mlx_lm.models.{family}").ModelArgs.from_dict(settings)
        print(family, int(read.rope_theta))
    except TypeError as error:
        print(family, "TypeError" if "rope_theta" in str(error) else error)
PYTHON
HF_HUB_OFFLINE=1 env/bin/python look.py 2> warnings.txt | tee seen.txt
diff seen.txt <(printf 'qwen3 654321\nllama 10000\nqwen2 1000000\ngemma2 10000\ngranite TypeError\n')
