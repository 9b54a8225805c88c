"""Evaluate a trained run with code of your own, under every ablation mode.

The measure here is small: how often the next word of a story is written in capitals, by greedy
decoding, after an opening in small letters and after one in capitals. Put yours in its place; all
that is special is the line `with ablated(model, mode)`.

    python examples/own_data.py        # trains own_data/runs/mine
    python examples/own_harness.py [RUN]
"""

import sys
from pathlib import Path

import torch

from gradroute import ablated, load_config, standard_modes
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.runs.folder import RunFolder

OPENINGS = {
    "small letters": ["One day, the", "The old man", "Anna had a"],
    "capitals": ["ONE DAY, THE", "THE OLD MAN", "ANNA HAD A"],
}


def main(run: Path) -> dict[str, dict[str, float]]:
    """Mode -> kind of opening -> share of the letters written that are capitals."""
    folder = RunFolder(run)
    config = load_config(folder.config)
    base, model = restore(config, finished_checkpoint(folder, config.train.max_steps))
    found: dict[str, dict[str, float]] = {}
    for mode in standard_modes(tuple(config.adapters)):
        with ablated(model, mode), torch.no_grad():
            found[mode.name] = {
                kind: capitals("".join(continued(model, base.tokenizer, text) for text in texts))
                for kind, texts in OPENINGS.items()
            }
    return found


def continued(model, tokenizer, text: str) -> str:
    """The text that the model writes after another."""
    inputs = tokenizer(text, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return tokenizer.decode(written[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def capitals(text: str) -> float:
    """Share of the letters of a text that are capitals; 0 for one without letters."""
    letters = [letter for letter in text if letter.isalpha()]
    return sum(map(str.isupper, letters)) / len(letters) if letters else 0.0


if __name__ == "__main__":
    rates = main(Path(sys.argv[1] if len(sys.argv) > 1 else "own_data/runs/mine"))
    print(f"{'mode':14} " + " ".join(f"{kind:>14}" for kind in OPENINGS))
    for name, row in rates.items():
        print(f"{name:14} " + " ".join(f"{row[kind]:14.0%}" for kind in OPENINGS))
