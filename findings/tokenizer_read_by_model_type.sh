#!/usr/bin/env bash
# transformers 5.23.0: beside the config of a Qwen2 model a tokenizer of one's own gets a token more
#
# Where two meet: a small tokenizer of the tokenizers library, and a config.json whose model_type is qwen2.
# Guess: AutoTokenizer gives the class that tokenizer_config.json names, with the tokens of
# tokenizer.json, whatever model the folder is for.
# Seen: beside model_type llama it does. Beside qwen2 it gives a Qwen2Tokenizer, which adds
# <|endoftext|> with the id after the last one and pads with it. A model with as many embeddings as
# the folder has tokens has none for that id. Nothing is printed.
# Output: "llama TokenizersBackend 3 pads: none" and "qwen2 Qwen2Tokenizer 4 pads: 3".
# Source: MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS in models/auto/tokenization_auto.py, model types
# for which the class that a folder names is passed over.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q transformers==5.23.0
cat > write_and_read.py <<'PYTHON'
import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

pairs = BPE(vocab={"<eos>": 0, "a": 1, "b": 2}, merges=[])
own = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(pairs), eos_token="<eos>")
for kind in ("llama", "qwen2"):
    own.save_pretrained(kind)
    Path(kind, "config.json").write_text(json.dumps({"model_type": kind}))
    assert len(PreTrainedTokenizerFast.from_pretrained(kind)) == 3
    read = AutoTokenizer.from_pretrained(kind)
    pads = read(["a", "ab"], padding=True)["input_ids"][0][-1] if read.pad_token else "none"
    print(kind, type(read).__name__, len(read), "pads:", pads)
PYTHON
export HF_HUB_OFFLINE=1
env/bin/python write_and_read.py 2> warnings.txt | tee seen.txt
diff seen.txt <(printf 'llama TokenizersBackend 3 pads: none\nqwen2 Qwen2Tokenizer 4 pads: 3\n')
