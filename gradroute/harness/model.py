"""A run as a model of lm-eval: lm-eval's own Hugging Face model, run under an ablation mode."""

from pathlib import Path
from typing import TYPE_CHECKING

from gradroute.config.run_config import load_config
from gradroute.errors import MachineError
from gradroute.models.trained import finished_checkpoint, restore
from gradroute.routing.policy import AblationMode
from gradroute.runs.folder import RunFolder, find_run
from gradroute.runs.resume import check_identity

if TYPE_CHECKING:
    from gradroute.harness.lm import ModeLM


def as_lm(run: RunFolder | Path | str, mode: AblationMode | str) -> "ModeLM":
    """A finished run under an ablation mode, as a model that `lm_eval.simple_evaluate` takes.

    All that lm-eval asks of it is computed within `ablated(model, mode)`: log-likelihoods of
    continuations and of whole texts, and generated texts. Of one run under another mode,
    `.under(mode)` is a second model on the same weights.

    Differences to lm-eval's own model of a Hugging Face folder: a text begins with the beginning
    token, if the tokenizer has one, as in training and in every other evaluation here, also where
    the tokenizer does not put it there by itself (GPT-2's and GPT-NeoX's do not); the softmax is
    taken in float32 whatever the base's dtype; and a log-likelihood that is not finite is an error.

    Args:
        run: A run's folder, or its name under `runs/`.
        mode: Such as `bad_ablated`; see `gradroute.AblationMode`.

    Raises:
        ConfigError: There is no such run or mode, or the base model has changed.
        MachineError: lm-eval is not installed, or the run has no finished checkpoint.
    """
    check_installed()
    folder = run if isinstance(run, RunFolder) else find_run(str(run), Path("runs"))
    config = load_config(folder.config)
    base, model = restore(config, finished_checkpoint(folder, config.train.max_steps))
    check_identity(folder, {"base": base.identity})
    from gradroute.harness.lm import ModeLM

    if isinstance(mode, str):
        mode = AblationMode.parse(mode, tuple(config.adapters))
    return ModeLM(model, base.tokenizer, mode, config.evaluate.batch_rows)


def check_installed() -> None:
    """See that lm-eval is there.

    Raises:
        MachineError: It is not; the message says how to install it.
    """
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise MachineError(
            "standard tasks need the package lm-eval: pip install 'gradroute[eval]'."
        ) from error
