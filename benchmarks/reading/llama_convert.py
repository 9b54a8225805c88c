"""llama.cpp's own converters, from its source, on a model whose tokenizer they do not know.

    python llama_convert.py SOURCE base MODEL --outtype f16 --outfile base.gguf
    python llama_convert.py SOURCE lora ADAPTER --base MODEL --outfile adapter.gguf

The converter of bases knows tokenizers by a hash; here the name of GPT-2's stands for any, which
changes how a text is cut and nothing else: the readers are given tokens.
"""

import runpy
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

source, kind = Path(sys.argv[1]), sys.argv[2]
sys.path[:0] = [str(source), str(source / "gguf-py")]
conversion: Any = import_module("conversion")
text: Any = import_module("conversion.base").TextModel
find = conversion.get_model_class


def with_known_tokenizer(name: str, mmproj: bool = False) -> Any:
    """The converter of a family, which takes any tokenizer.json."""
    found = find(name, mmproj=mmproj)
    if kind == "base":
        found.set_vocab = text._set_vocab_gpt2
    return found


text.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
conversion.get_model_class = with_known_tokenizer
sys.argv = [kind, *sys.argv[3:]]
name = "convert_hf_to_gguf.py" if kind == "base" else "convert_lora_to_gguf.py"
runpy.run_path(str(source / name), run_name="__main__")
