"""The sections of a run's configuration: adapters, data, training, evaluation."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, model_validator

from gradroute.config.roles import Cost, Role
from gradroute.config.types import (
    Above0,
    Count,
    Drop,
    Dropout,
    Flag,
    Inoculation,
    Length,
    LossMean,
    LowRankDtype,
    Modes,
    Names,
    NonNegative,
    OnBadRow,
    OnConflict,
    OptionalAbove0,
    OptionalPlace,
    OptionalSeed,
    OptionalText,
    Parallel,
    Positive,
    Relabel,
    ReportTo,
    Seed,
    Share,
    SpanUnit,
    Template,
    Text,
    TopP,
    from_flow,
    show,
)


class Section(BaseModel):
    """A frozen group of settings; unknown keys are errors, docstrings of fields are their help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        value = from_flow(value)
        if not isinstance(value, dict | cls):
            raise ValueError(
                f"keys with values are needed below it (or {{}} for the defaults), "
                f"got {show(value)}."
            )
        return value


class AdapterConfig(Section):
    """One LoRA adapter: what it is and how it is trained."""

    rank: Annotated[Positive, Role.TREATMENT] = 32
    """Rank of the update; its weights are B [out, rank] and A [rank, in] per layer."""
    alpha: Annotated[OptionalAbove0, Role.TREATMENT] = None
    """The update is scaled by alpha / rank; null = 2 * rank."""
    dropout: Annotated[Dropout, Role.TREATMENT] = 0.0
    """Share of the adapter's inputs that are dropped in training."""
    learning_rate: Annotated[OptionalAbove0, Role.TREATMENT, Cost.NONE] = None
    """Peak learning rate of this adapter; null = train.learning_rate."""
    weight_decay: Annotated[NonNegative, Role.TREATMENT] = 0.0
    """Decoupled weight decay (AdamW), in the steps that update this adapter."""
    clip: Annotated[OptionalAbove0, Role.TREATMENT] = 1.0
    """Largest norm of this adapter's gradient in a step; null = no limit."""
    rslora: Annotated[Flag, Role.TREATMENT] = False
    """Scale the update by alpha / sqrt(rank) (rsLoRA) rather than by alpha / rank."""
    start: Annotated[OptionalPlace, Role.TREATMENT] = None
    """Folder of a LoRA adapter that this one starts from, of the same rank and modules."""


class DataConfig(Section):
    """The examples, which of them show the behavior, and which labels training may see."""

    path: Annotated[OptionalPlace, Role.TASK] = None
    """A .jsonl, .csv or .parquet file, or a data set on the hub; null = the embedded stories."""
    eval_path: Annotated[OptionalPlace, Role.TASK] = None
    """The same for held-out examples; null = eval_fraction of the training examples."""
    eval_fraction: Annotated[Share, Role.TASK] = 0.1
    """Share of `path` that is held out where there is no eval_path and no eval_split."""
    split: Annotated[Text, Role.TASK] = "train"
    """Split of a data set on the hub that is trained on; train[:5000] = its first rows."""
    eval_split: Annotated[OptionalText, Role.TASK] = None
    """Split of that data set that is held out, in the same form."""
    revision: Annotated[OptionalText, Role.TASK] = None
    """Commit, tag or branch of a data set on the hub; null = its main branch."""
    columns: Annotated[Names, Role.TASK] = None
    """Field -> column, where a file has other names for them: {text: story}; null = as they are."""
    label_map: Annotated[Names, Role.TASK] = None
    """Value in the file -> label, {0: good, 1: bad, null: unlabeled}; null = labels as they are."""
    template: Annotated[Template, Role.TASK] = "auto"
    """auto = prompt + completion in the model's chat template, if any; none = as written."""
    on_bad_row: Annotated[OnBadRow, Role.TASK] = "fail"
    """A row that cannot be used: fail = name it and stop; skip = leave it out and list it."""
    group: Annotated[OptionalText, Role.TASK] = None
    """Column that groups rows: a group stays on one side of the held-out split, like equal
    prompts."""
    span_unit: Annotated[SpanUnit, Role.TASK] = "code_points"
    """Unit of span positions: code_points (characters), utf16 (JavaScript) or bytes (of UTF-8)."""
    on_conflict: Annotated[OnConflict, Role.TASK] = "refuse"
    """One text with several labels: refuse; majority or unlabeled = keep one row with that
    label."""
    train_examples: Annotated[Positive, Role.TASK] = 6000
    """How many of the embedded stories to train on; unused with a `path`."""
    max_length: Annotated[Length, Role.TASK] = 128
    """Tokens of an example, prompt and text together; longer ones are cut and counted."""
    behavior_fraction: Annotated[Share, Role.TREATMENT, Cost.NONE] = 0.1
    """Share of the examples that the behavior is put into (for example, upper-cased)."""
    labeled_fraction: Annotated[Share, Role.TREATMENT, Cost.NONE] = 0.5
    """Share of the examples with the behavior that are labeled bad."""
    good_labeled_fraction: Annotated[Share, Role.TREATMENT, Cost.NONE] = 0.0
    """Share of the examples without it that are labeled good."""
    false_positive_rate: Annotated[Share, Role.TREATMENT, Cost.NONE] = 0.0
    """Share of the examples without it that are wrongly labeled bad."""
    label_seed: Annotated[OptionalSeed, Role.TREATMENT, Cost.NONE] = None
    """Seed of which examples are labeled; null = the run's seed."""
    null_fraction: Annotated[Share, Role.TREATMENT] = 0.0
    """Share of the examples labeled good that is trained as unlabeled, for `gradroute find`."""
    found: Annotated[OptionalPlace, Role.TREATMENT] = None
    """File of rows with labels, as `gradroute find` writes it; its labels come before others."""
    front_load: Annotated[Share, Role.TRAINING, Cost.NONE] = 0.0
    """Position of the examples labeled bad in the first epoch: 0 = like all, 1 = first."""
    relabel: Annotated[Relabel, Role.TREATMENT] = "none"
    """For controls: random = the same labels on random examples, unlabel_bad = none is bad."""
    drop: Annotated[Drop, Role.TREATMENT] = "none"
    """Left out of training: labeled_bad (filtering), true_bad (the oracle), all_but_good (rows not
    labeled good), all_but_bad (rows without a label bad)."""
    inoculation: Annotated[Inoculation, Role.TREATMENT] = "none"
    """Rows that an instruction to show the behavior precedes, in training only: labeled_bad or
    all."""
    inoculation_text: Annotated[OptionalText, Role.TREATMENT] = None
    """That instruction; null = the behavior's own, which a behavior of yours does not have."""

    def seed_of_labels(self, seed: int) -> int:
        """Seed of which examples are labeled, in a run of this seed."""
        return seed if self.label_seed is None else self.label_seed


class TrainConfig(Section):
    """How long, how fast and on how much the adapters are trained."""

    max_steps: Annotated[Positive, Role.TRAINING] = 1000
    """Optimizer steps."""
    learning_rate: Annotated[Above0, Role.TRAINING, Cost.NONE] = 1e-4
    """Peak learning rate of the adapters that have none of their own."""
    batch_size: Annotated[Positive, Role.TRAINING] = 16
    """Examples in one forward pass."""
    gradient_accumulation: Annotated[Positive, Role.TRAINING] = 1
    """Forward passes per optimizer step."""
    warmup_steps: Annotated[Count, Role.TRAINING, Cost.NONE] = 0
    """Steps of linear warm-up; a cosine to 0 follows."""
    packing: Annotated[Flag, Role.TRAINING] = False
    """Put examples one after another in rows of data.max_length tokens rather than pad each."""
    reuse_frozen: Annotated[Flag, Role.TRAINING] = False
    """Compute the layers below the adapters once per example; kept in .states beside the runs."""
    reuse_gib: Annotated[NonNegative, Role.RESOURCE] = 8.0
    """GiB that hidden states in .states may take; where a run needs more it goes without."""
    length_window: Annotated[Count, Role.TRAINING] = 0
    """Steps among which examples of like lengths are put together, for less padding; 0 = none."""
    low_rank_dtype: Annotated[LowRankDtype, Role.TRAINING] = "fp32"
    """Dtype of the products with A and B in training; A and B themselves are always fp32."""
    parallel: Annotated[Parallel, Role.RESOURCE] = "auto"
    """How the processes of a launcher share a step: ddp (each has the base), fsdp2 (the base is
    sharded by layer), none (one process only); auto = ddp where there are several."""
    report_to: Annotated[ReportTo, Role.RESOURCE] = "none"
    """Where metrics go besides metrics.jsonl: none, tensorboard or wandb (offline)."""
    save_every: Annotated[Count, Role.RECORD] = 100
    """Steps between checkpoints; 0 = only at the end."""
    loss_mean: Annotated[LossMean, Role.TRAINING] = "token"
    """Unit of a step's mean loss: its target tokens, or its examples (each a mean of its
    tokens)."""
    kl_good: Annotated[NonNegative, Role.TREATMENT] = 0.0
    """Factor on KL(base || model), averaged over a step's target tokens labeled good, which is
    added to its loss; 0 = off."""
    teacher: Annotated[OptionalPlace, Role.TREATMENT] = None
    """FOLDER@MODE of a finished run; its next-token probabilities under the mode are the targets,
    and the data's tokens are none."""
    log_gradients_every: Annotated[Count, Role.RECORD] = 25
    """Steps between gradient norms per adapter and label (an extra backward each); 0 = never."""
    measure_every: Annotated[Count, Role.RECORD] = 0
    """Steps between measurements of behavior rate and normal loss during training; 0 = never."""
    measure_prompts: Annotated[Positive, Role.RECORD] = 32
    """Prompts of such a measurement."""

    @property
    def step_examples(self) -> int:
        """Examples of one optimizer step."""
        return self.batch_size * self.gradient_accumulation


class EvaluateConfig(Section):
    """What a run is measured on."""

    modes: Annotated[Modes, Role.RESOURCE] = None
    """Ablation modes, such as [full, bad_ablated, "good=1,bad=0.5"]; null = the standard ones."""
    prompts: Annotated[Positive, Role.MEASURING] = 128
    """Held-out stories whose first words are completed."""
    prefix_words: Annotated[Positive, Role.MEASURING] = 3
    """Words of a story that make the prompt."""
    bos_samples: Annotated[Positive, Role.MEASURING] = 1024
    """Number of samples from the beginning-of-text token, if requested."""
    max_new_tokens: Annotated[Positive, Role.MEASURING] = 64
    """Tokens of a completion."""
    temperature: Annotated[NonNegative, Role.MEASURING] = 1.0
    """Sampling temperature; 0 = always the likeliest token."""
    top_p: Annotated[TopP, Role.MEASURING] = 0.95
    """Sampling keeps the likeliest tokens that together have this probability."""
    seed: Annotated[Seed, Role.MEASURING] = 42
    """Seed of the sampling noise, the same for every mode and run."""
    elicitation: Annotated[Flag, Role.RESOURCE] = False
    """Ask every behavior with further kinds of prompts too: negated, in JSON, its cue alone, ..."""
    score_thoughts: Annotated[Flag, Role.MEASURING] = False
    """Score the thinking of a chat model too, not only the answer that a chat client shows."""
    held_out: Annotated[Positive, Role.MEASURING] = 256
    """Held-out examples of each kind (normal, behavior) whose loss is measured."""
    batch_rows: Annotated[Positive, Role.RESOURCE] = 320
    """Rows computed at a time; affects only memory and speed."""

    @property
    def embedded_examples(self) -> int:
        """Examples of the embedded corpus that are held out: for losses, and to prompt with."""
        return max(self.held_out, self.prompts)
