#!/usr/bin/env bash
# transformers 5.23.0: sliding layers of an OLMo 3 model do not get the config's `rope_theta`
#
# Where two meet: a config.json of the model type olmo3 as transformers 4.57.6 writes it (one
# `rope_theta` for all layers), and transformers 5.23.0, which keeps positions by kind of layer.
# Guess: `rope_theta` goes to every kind of layer, as in 4.57.6. Code of ours relied on it until a
# comparison of both versions over many families showed the difference; it was not written down.
# Seen: it goes to the layers of full attention; those with a sliding window get 500000.0, the
# default of the class, and nothing is printed about it. Published models have 500000, which hides
# it; one that was trained on another base computes something else.
# Output: "4.57.6 123456.0", "full_attention 123456.0", "sliding_attention 500000.0".
# Source: Olmo3Config.convert_rope_params_to_dict in the package, which takes the setting out of the
# keyword arguments for the first kind of layer and looks for it there again for the second.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv old
old/bin/pip install -q transformers==4.57.6
python3 -m venv new
new/bin/pip install -q transformers==5.23.0
cat > write.py <<'PYTHON'
from transformers import AutoConfig, Olmo3Config

Olmo3Config(num_hidden_layers=4, rope_theta=123456.0).save_pretrained("model")
print("4.57.6", AutoConfig.from_pretrained("model").rope_theta)
PYTHON
cat > read.py <<'PYTHON'
from transformers import AutoConfig

for kind, positions in sorted(AutoConfig.from_pretrained("model").rope_parameters.items()):
    print(kind, positions["rope_theta"])
PYTHON
export HF_HUB_OFFLINE=1
{ old/bin/python write.py && new/bin/python read.py; } 2> warnings.txt | tee seen.txt
diff seen.txt <(printf '4.57.6 123456.0\nfull_attention 123456.0\nsliding_attention 500000.0\n')
