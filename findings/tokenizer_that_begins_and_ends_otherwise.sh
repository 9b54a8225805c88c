#!/usr/bin/env bash
# transformers 5.23.0 -> 4.57.6: a Llama tokenizer without BOS and with EOS comes back the other way
#
# Where two meet: a tokenizer that transformers 5.23.0 saved, read by transformers 4.57.6.
# Guess: `add_bos_token=False` and `add_eos_token=True` are in the saved files, so both versions make
# the same ids. This was expected until the source was read; it was not written down before that.
# Seen: 5.23.0 leaves both settings out of tokenizer_config.json and keeps what they do in the
# post-processor of tokenizer.json. The Llama class of 4.57.6 builds that post-processor anew from
# its own defaults: the same folder gives a <s> in front and no </s> behind. Nothing is printed.
# Output: "5.23.0 a b </s>" and "4.57.6 <s> a b".
# Source: save_pretrained in tokenization_utils_base.py of 5.23.0, which drops the two settings, and
# update_post_processor of the fast Llama tokenizer in 4.57.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv old
old/bin/pip install -q transformers==4.57.6
python3 -m venv new
new/bin/pip install -q transformers==5.23.0
cat > write.py <<'PYTHON'
from transformers import LlamaTokenizer

pieces = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "\u2581a", "\u2581b"]
LlamaTokenizer(
    vocab={piece: i for i, piece in enumerate(pieces)},
    merges=[("\u2581", "a"), ("\u2581", "b")],
    add_bos_token=False,
    add_eos_token=True,
).save_pretrained("tokenizer")
PYTHON
cat > read.py <<'PYTHON'
import transformers

tokenizer = transformers.AutoTokenizer.from_pretrained("tokenizer")
pieces = tokenizer.convert_ids_to_tokens(tokenizer("a b")["input_ids"])
print(transformers.__version__, *(piece.lstrip("\u2581") for piece in pieces))
PYTHON
export HF_HUB_OFFLINE=1
{ new/bin/python write.py && new/bin/python read.py && old/bin/python read.py; } \
    2> warnings.txt | tee seen.txt
diff seen.txt <(printf '5.23.0 a b </s>\n4.57.6 <s> a b\n')
