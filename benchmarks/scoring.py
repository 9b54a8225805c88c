"""Teacher-forced losses under three ablation modes: one pass against a pass of PEFT per mode.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --sizes 2M 15M

16 examples of 128 tokens, adapters on the last half of the layers (gradroute's default) or on all.
That the losses agree is checked.
"""

from collections.abc import Sequence

import measuring
import shapes
import torch
from evaluation import MODES
from peft import PeftModel
from torch.nn import functional as F

from gradroute.data.batches import TokenizedExample, collate
from gradroute.evaluate.losses import held_out_losses
from gradroute.routing.adapters import route_adapters
from gradroute.routing.policy import AblationMode

PEFT = "PEFT, a pass per mode"
OURS = "gradroute, all modes at once"
ROWS = 48  # at once, modes counted
AGREE = 1e-4  # largest relative difference of an example's loss


def by_peft(model: PeftModel, rows: Sequence[TokenizedExample]) -> list[list[float]]:
    """The summed loss of each example under each mode, with PEFT's own means."""
    found = []
    for scales in MODES.values():
        model.base_model.set_adapter([name for name, scale in scales.items() if scale])
        losses: list[float] = []
        for start in range(0, len(rows), ROWS // len(MODES)):
            batch = collate(rows[start : start + ROWS // len(MODES)], pad_id=0)
            with torch.no_grad():
                logits = model(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
                ).logits
            each = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
            losses += each.view(batch.targets.shape).sum(1).tolist()
        found.append(losses)
    return found


def measure(size: str, layers: str, rounds: int, seed: int) -> dict:
    """The table of one size, with adapters on these layers."""
    of = shapes.shape(f"{size}-16x128")
    base = shapes.base(of.size)
    rows = shapes.rows(of, [0], seed)
    which = shapes.half(base) if layers == "last-half" else None
    pair = []
    for _ in range(2):
        model = shapes.peft_model(base, {"good": shapes.RANK, "bad": shapes.RANK}, which)
        shapes.fill(model, seed)
        pair.append(model.eval())
    theirs, model = pair[0], route_adapters(pair[1])
    modes = [AblationMode(name, scales) for name, scales in MODES.items()]

    def ours() -> list[list[float]]:
        found = held_out_losses(model, rows, modes, pad_id=0, rows_per_batch=ROWS)
        return [losses.sums for losses in found.values()]

    one, other = torch.tensor(ours()), torch.tensor(by_peft(theirs, rows))
    apart = float(((one - other).abs() / other.abs()).max())
    variants = {PEFT: lambda: by_peft(theirs, rows), OURS: ours}
    times = measuring.interleaved(variants, rounds, seed, warm=0)  # both have just run
    title = f"{size}, 3 modes, 16 examples of 128 tokens, adapters on {layers}"
    return measuring.table(title, times, PEFT, seed=seed, same_losses=apart <= AGREE)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the sizes that are asked for."""
    asked = measuring.options(__doc__, argv, sizes=("2M",))
    question = "What do teacher-forced losses under three ablation modes cost?"
    measuring.answer(
        "scoring",
        question,
        asked,
        lambda: [
            measure(size, layers, asked.rounds, asked.seed)
            for size in asked.sizes
            for layers in (("last-half", "all") if size == "2M" else ("last-half",))
        ],
    )


if __name__ == "__main__":
    main()
