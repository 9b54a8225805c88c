#!/usr/bin/env bash
# lm-eval 0.4.13: with a tokenizer that adds EOS, one-token answers all get the same score
#
# Where two meet: the log-likelihood requests of lm-eval 0.4.13 (every multiple-choice task) and a
# tokenizer of transformers 5.23.0 with `add_eos_token=True`, as saved after some fine-tunings.
# Guess, written down before it was run: no EOS comes between the context and the continuation.
# Seen: it does, and the first token of the continuation goes missing. For the question "a b" and
# the answer "c d", what is scored is "d </s>" after "<s> a b </s>". For an answer of one token, only
# "</s>" is scored, so that all answers of a question have one score. No message says so.
# Output: the tokens of context and continuation without and with EOS, and the count of scores that
# differ among three answers of one token.
# Source: _encode_pair of TemplateLM in lm_eval/api/model.py encodes the context, and the context
# with its continuation, and cuts the second at the length of the first. Both end with an EOS.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q torch==2.13.0 transformers==5.23.0 'lm-eval[hf]==0.4.13'
cat > look.py <<'PYTHON'
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaTokenizer

letters = "abcdefg"
pieces = ["<unk>", "<s>", "</s>", "\u2581", *letters, *("\u2581" + letter for letter in letters)]
sizes = {"vocab_size": len(pieces), "hidden_size": 32, "intermediate_size": 32}
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=4, initializer_range=0.5)
)
for adds_eos in (False, True):
    LlamaTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[("\u2581", letter) for letter in letters],
        add_bos_token=True,
        add_eos_token=adds_eos,
    ).save_pretrained("tokenizer")
    tokenizer = AutoTokenizer.from_pretrained("tokenizer")
    harness = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1)
    pair = harness._encode_pair("a b", " c d")
    texts = [" ".join(tokenizer.convert_ids_to_tokens(ids)).replace("\u2581", "") for ids in pair]
    print("with EOS:" if adds_eos else "without:", " | ".join(texts))
    requests = [
        Instance("loglikelihood", {}, ("a b", " " + answer), i) for i, answer in enumerate("cde")
    ]
    scores = {round(score, 4) for score, _ in harness.loglikelihood(requests, disable_tqdm=True)}
    print("with EOS:" if adds_eos else "without:", len(scores), "scores for three answers")
PYTHON
HF_HUB_OFFLINE=1 env/bin/python look.py 2> warnings.txt | tee seen.txt
diff seen.txt - <<'SEEN'
without: <s> a b | c d
without: 3 scores for three answers
with EOS: <s> a b </s> | d </s>
with EOS: 1 scores for three answers
SEEN
