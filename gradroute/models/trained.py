"""A run's model: the base with its adapters, untrained or from a checkpoint."""

from peft import PeftModel
from transformers import PreTrainedModel

from gradroute.config.run_config import RunConfig
from gradroute.errors import MachineError
from gradroute.models.base import Base, load_base_of
from gradroute.models.checkpoint import Checkpoint, latest_checkpoint, load_adapters
from gradroute.routing.adapters import attach_adapters
from gradroute.runs.folder import RunFolder


def attach(model: PreTrainedModel, config: RunConfig) -> PeftModel:
    """The base with the adapters of a config, at their initial weights."""
    return attach_adapters(
        model,
        config.adapters,
        targets=config.targets,
        layers=config.layers,
        seed=config.seed,
    )


def restore(
    config: RunConfig, checkpoint: Checkpoint, *, on_cpu: bool = False
) -> tuple[Base, PeftModel]:
    """The base model and the run's trained model on it, in evaluation mode."""
    base = load_base_of(config, on_cpu=on_cpu)
    model = attach(base.model, config)
    load_adapters(checkpoint, model)
    return base, model.eval()


def finished_checkpoint(folder: RunFolder, max_steps: int) -> Checkpoint:
    """The checkpoint after a run's last step, `train.max_steps` of its config.

    Raises:
        MachineError: There is none (yet).
    """
    checkpoint = latest_checkpoint(folder.checkpoints)
    if checkpoint is None or checkpoint.step < max_steps:
        done = 0 if checkpoint is None else checkpoint.step
        raise MachineError(
            f"run {folder.name} has {done} of {max_steps} steps in a checkpoint. "
            "Finish it with the same `gradroute train` command first."
        )
    return checkpoint
