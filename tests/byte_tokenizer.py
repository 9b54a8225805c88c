"""The tokenizer that tests of batches stand on."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<s>", "</s>", "<pad>")


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token per byte, ids 3 to 258; 0, 1, 2 are the special tokens; "ab" is merged to 259."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet, "ab"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # As many real tokenizers do: by itself it puts </s> behind every text, and <s> before it where
    # that is its beginning token.
    begins = "<s> " if special.get("bos_token") == "<s>" else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begins}$A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
