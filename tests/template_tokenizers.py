"""Tokenizers of the kinds that chat models have, made in memory: byte-level and SentencePiece."""

from functools import cache

import chat_templates
from byte_tokenizer import byte_tokenizer
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

KINDS = ("bytes", "trimmed", "first", "always", "prepend")
"""Byte-level, with whole offsets or trimmed ones; the ways SentencePiece puts its mark."""

_TEXT = "the fox sat ran hello there how are you fine thanks good yes no assistant user"
_WORDS = _TEXT.split()


def tokenizer(kind: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer with a template; a fresh one each time."""
    if kind in ("bytes", "trimmed"):
        made = byte_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
        if kind == "trimmed":
            made.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    else:
        inner = Tokenizer.from_str(_sentencepiece(kind))
        made = PreTrainedTokenizerFast(
            tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )
    made.add_special_tokens({"additional_special_tokens": list(chat_templates.MARKS)})
    made.chat_template = template
    return made


@cache
def _sentencepiece(kind: str) -> str:
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if kind == "prepend":
        inner.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))],
        show_progress=False,
    )
    texts = [" ".join(_WORDS[i:] + _WORDS[:i]).capitalize() for i in range(len(_WORDS))]
    inner.train_from_iterator([*texts, *_WORDS], trainer)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return inner.to_str()
