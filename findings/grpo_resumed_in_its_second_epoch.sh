#!/usr/bin/env bash
# TRL 1.16.0: a GRPO run that goes on in its second epoch takes the prompts in the order of the first
#
# Where two meet: RepeatSampler of TRL 1.16.0 and train(resume_from_checkpoint=...) of transformers
# 5.23.0, which skips the batches of the current epoch that are done.
# Guess, written down before it was run: a run of 4 steps a rollout each, stopped at step 3 of 4 and
# resumed from its checkpoint, samples for the prompts of the uninterrupted run, since Trainer restores
# the state of data order and of random numbers (SFTTrainer and DPOTrainer end bit for bit alike).
# Seen: in the second epoch (two steps an epoch) the resumed run takes another prompt. It is the one
# that stands there in the first epoch. Other steps than this one repeat prompts and leave some out.
# Output: the prompts of each step, uninterrupted and resumed.
# Source: RepeatSampler in trl/trainer/utils.py draws the order of each epoch from one generator that
# is seeded when the sampler is made; nothing advances it past the epochs that are done, and it has no
# set_epoch that transformers or accelerate could call.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0 datasets==5.2.0 \
    accelerate==1.15.0
cat > look.py <<'PYTHON'
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

words = Tokenizer(models.WordLevel({w: i for i, w in enumerate("_ . a b c d".split())}, "_"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="_", eos_token=".")
sizes = {"vocab_size": 6, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}


def prompts_of(folder, **start):
    """Train 4 steps of one prompt each, in epochs of two; the prompt of each step."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**sizes, **special, num_attention_heads=2))
    asked = []

    def reward(prompts, completions, **columns):
        asked.append(prompts[0])
        return [float(len(text)) for text in completions]

    settings = GRPOConfig(
        folder,
        max_steps=4,
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=3,
        save_steps=3,
        seed=SEED,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    rows = Dataset.from_dict({"prompt": ["a", "b"]})
    trainer = GRPOTrainer(base, reward, settings, train_dataset=rows, processing_class=tokenizer)
    trainer.train(**start)
    return asked


SEED = 0  # its second epoch has another order than its first
whole = prompts_of("whole")
again = prompts_of("again", resume_from_checkpoint="whole/checkpoint-3")
print("prompts: uninterrupted", *whole)
print("prompts: resumed after step 3", *again)
PYTHON
HF_HUB_OFFLINE=1 env/bin/python look.py 2> warnings.txt > printed.txt
grep '^prompts:' printed.txt | tee seen.txt
diff seen.txt - <<'SEEN'
prompts: uninterrupted a b b a
prompts: resumed after step 3 b
SEEN
