"""The record of one run: a strict, versioned schema (no torch here, so that reports load without it).

Conventions: bytes are integers, seconds are floats, units stand in field names, unknown is None. A record holds the
resolved plan whole, so that a reader needs no other file to know what was run.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, model_serializer

from results.catalogue import Catalogue
from results.strict import Strict as Strict

SCHEMA_VERSION = 1

Status = Literal["ok", "diverged", "out_of_memory", "failed", "interrupted"]
Bytes = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted names; lists stay whole."""
    out: dict[str, Any] = {}
    for name, item in value.items():
        out |= flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {prefix + name: item}
    return out


class ModelPlan(Strict):
    """Which network the run starts from. `digest` is the sha256 of its weight file, or the hub revision's commit."""

    name: str
    source: Literal["micro", "package", "directory", "hub", "config"]
    revision: str | None = None
    digest: str | None = None
    disclosure: str | None = None
    vocabulary: int | None = Field(default=None, gt=0, description="embeddings of a network made from its size alone")


class DataPlan(Strict):
    """Which rows the run sees. No path stands here: `digest` (sha256 over the files or generator) names the content."""

    source: Literal["micro", "directory", "hub"]
    name: str
    revision: str | None = None
    digest: str | None = None
    max_length: int = Field(gt=0)
    train_rows: int | None = Field(default=None, gt=0, description="cap on train rows; None = all")
    eval_rows: int | None = Field(default=None, gt=0, description="cap on rows of each evaluated split; None = all")
    held_out: bool = Field(default=False, description="evaluate on a held-out part of train instead of validation")
    tokenizer: str | None = Field(default=None, description="where the data, not the model, brings the tokenizer")
    tokenizer_revision: str | None = None
    tokenizer_digest: str | None = Field(default=None, description="sha256 of its file; None where a revision names it")
    layout: Literal["packed", "padded"] | None = Field(default=None, description="how documents become sequences")
    eval_tokens: int | None = Field(default=None, gt=0, description="budget of predicted tokens; None = all")
    length_grouping: int = Field(
        default=0, ge=0, description="batches at a time whose rows are sorted by length; 0: rows meet at random"
    )
    prompt: str | None = Field(default=None, description="what a language model is asked, with {question} in it")
    new_tokens: int | None = Field(default=None, gt=0, description="longest generated answer")


class TrainingPlan(Strict):
    """Everything about the optimisation that all methods share, and the learning rate."""

    steps: int = Field(gt=0, description="optimizer steps")
    epochs: float | None = Field(default=None, description="passes over the train rows that the steps amount to")
    batch_size: int = Field(gt=0, description="sequences per optimizer step")
    accumulation: int = Field(default=1, gt=0, description="micro-batches per optimizer step")
    learning_rate: float = Field(gt=0)
    rest_learning_rate: float | None = Field(
        default=None, gt=0, description="of what every method trains alike (Placement.trained); None: the same rate"
    )
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    final_fraction: float = Field(default=0.0, ge=0, le=1, description="last learning rate over the peak one")
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    clip_norm: float | None = Field(default=None, gt=0)
    clip_scope: Literal["all", "parameter"] = Field(
        default="all", description="whose norm is clipped: all gradients' common one, or each parameter's own"
    )
    precision: Literal["fp32", "bf16", "bf16-autocast"] = "fp32"
    bf16_updates: Literal["nearest", "stochastic", "kahan", "master"] = Field(
        default="nearest", description="how weights in bf16 take an update; all but nearest: with moments in fp32"
    )
    bf16_products: Literal["native", "fp32"] = Field(
        default="native", description="products of bf16 matrices: the processor's own, or in fp32 and rounded once"
    )
    state_bits: Literal[8, 32] = 32
    per_layer: bool = False
    checkpointing: bool = False
    recompute: tuple[Literal["norms", "mlp", "loss"], ...] = Field(
        default=(), description="parts of the model made again in backward, exactly"
    )
    tf32: bool = Field(default=False, description="matrix products of fp32 numbers in TF32, on a device that has it")
    compile: bool = Field(default=False, description="the model through torch.compile")
    evaluations: int = Field(default=1, ge=1, description="evaluations spread over the run, the last at its end")
    max_skipped: int = Field(default=20, ge=1, description="non-finite steps in a row that end the run as diverged")


EQUAL_MEMORY = "equal memory"
"""Variant of runs whose batches are the largest that fit in the same memory: a comparison of its own."""


class Plan(Strict):
    """One run, resolved to numbers. Equal plans have equal hashes on every machine."""

    suite: str
    task: str
    profile: str
    method: str
    method_config: dict[str, JsonValue]
    targets: str = Field(description="name of the target set or comma-joined patterns")
    seed: int = Field(ge=0)
    model: ModelPlan
    data: DataPlan
    training: TrainingPlan
    purpose: Literal["result", "tuning", "gate"] = "result"
    variant: str = Field(default="", description="what sets the run apart from its profile, as the gate calls it")
    method_digest: str | None = Field(
        default=None, description="sha256 of the source of a method from outside the repository; None: one of its own"
    )

    def hash(self) -> str:
        """First 12 hex digits of sha256 over the canonical JSON (sorted keys, no spaces, defaults left out).

        Defaults are left out so that a field added later does not change the hash of an older plan; for the same
        reason the default of an existing field must never change.
        """
        text = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """File name stem: readable, unique by its hash."""
        parts = [self.suite, self.profile, self.task, self.method]
        rank = self.method_config.get("rank")
        parts += [f"r{rank}"] if rank is not None else []
        parts += [f"s{self.seed}", self.hash()]
        return "-".join(str(part) for part in parts)


class Environment(Strict):
    """Where the run ran. `commit` is None outside a git checkout."""

    commit: str | None
    dirty: bool | None
    python: str
    platform: str
    packages: dict[str, str]
    device: str = Field(description='"cpu" or "cuda"')
    device_name: str
    device_memory_bytes: Bytes | None
    cpu_count: int
    threads: int = Field(description="intra-op threads of this run")
    workers: int = Field(description="runs going on at the same time on this machine")
    ram_bytes: Bytes
    variables: dict[str, str] = Field(default={}, description="set ones of those that choose a processor's kernels")


class Layer(Strict):
    """One layer that the method changed: its dense shape and the ranks that took effect in it."""

    name: str
    shape: tuple[int, int]
    rank: int | None = None
    projection_rank: int | None = None


class Engagement(Strict):
    """Certificate that the method took effect: what matched, which state it keeps, against plain dense AdamW."""

    layers: list[Layer]
    trainable_parameters: int
    total_parameters: int
    state_shapes: dict[str, int] = Field(description='"name shape dtype" -> count, over all optimizer state tensors')
    state_bytes: Bytes
    dense_state_bytes: Bytes = Field(description="plain AdamW in fp32 on every weight of the unchanged model")
    basis_bytes: Bytes
    refreshes: int | None = Field(default=None, description="steps that refreshed a basis; None: the method has none")


class Peak(Strict):
    """Tracked bytes at the moment of the highest total within one phase, by category."""

    total_bytes: Bytes
    parameter_bytes: Bytes
    buffer_bytes: Bytes
    gradient_bytes: Bytes
    activation_bytes: Bytes
    temporary_bytes: Bytes
    optimizer_bytes: Bytes
    other_bytes: Bytes = 0


class LedgerLine(Strict):
    """One kind of bytes in three columns that never mix; None where a column says nothing about it."""

    name: str
    formula_bytes: Bytes | None = None
    count_bytes: Bytes | None = None
    peak_bytes: Bytes | None = Field(default=None, description="at the moment of the plain step's peak")


class LedgerGap(Strict):
    """The difference between two columns, what explains it, and what nothing explains."""

    name: str
    gap_bytes: int
    explained: dict[str, int] = {}
    unexplained_bytes: int


class Ledger(Strict):
    """What memory should hold by formula, what it holds by count, what the peak held, and every gap between them."""

    lines: list[LedgerLine]
    phases: dict[str, Peak] = Field(description="load, forward, backward, optimizer, refresh, evaluation: own peaks")
    gaps: list[LedgerGap]


class Memory(Strict):
    """Exact bytes counted from live tensors, tracked peaks, and what the process and the device saw."""

    weight_bytes: Bytes
    trainable_bytes: Bytes
    buffer_bytes: Bytes
    gradient_bytes: Bytes | None = Field(description="of all gradients of a step; None: see untracked")
    state_bytes: Bytes = Field(description="all optimizer state, bases included")
    basis_bytes: Bytes
    formula_state_bytes: Bytes | None = Field(
        description="the method's own formula over its matched layers and the rest"
    )
    predicted_peak_bytes: Bytes | None = Field(description="said before the run")
    step_peak: Peak | None = Field(description="plain optimizer step, at the longest batch")
    refresh_peak: Peak | None = Field(description="step that refreshes the bases; None: the method has none")
    rss_peak_bytes: Bytes | None = Field(description="peak resident set of the process, everything included")
    rss_start_bytes: Bytes | None = Field(description="resident set before the model was built")
    cuda_allocated_bytes: dict[str, Bytes] | None = Field(default=None, description="peak of tensors by phase")
    cuda_reserved_bytes: dict[str, Bytes] | None = Field(
        default=None, description="peak by phase of what the caching allocator held; published numbers are often these"
    )
    predicted_reserved_bytes: Bytes | None = Field(
        default=None, description="said before the run: what the device's allocator should hold for a plain step"
    )
    untracked: str | None = Field(default=None, description="why there are no tracked peaks; None: there are")

    @property
    def device_allocated_bytes(self) -> int | None:
        """Return the peak of tensors on the device during the run itself; None without a device."""
        return _peak_of_run(self.cuda_allocated_bytes)

    @property
    def device_reserved_bytes(self) -> int | None:
        """Return the peak of what the device's allocator held during the run itself; None without a device."""
        return _peak_of_run(self.cuda_reserved_bytes)

    ledger: Ledger | None = Field(default=None, description="None: written before there was one")


INSTRUMENTATION = "instrumentation"
"""The phase on a device in which a model of its own is measured: no part of the run."""


def _peak_of_run(phases: dict[str, int] | None) -> int | None:
    return max((size for name, size in (phases or {}).items() if name != INSTRUMENTATION), default=None)


class Timing(Strict):
    """Seconds summed over the run's steps (evaluation off the clock), after `warmup_steps` untimed ones."""

    timed_steps: int
    warmup_steps: int
    train_s: Seconds
    forward_s: Seconds
    backward_s: Seconds
    optimizer_s: Seconds
    refresh_s: Seconds | None = Field(description="optimizer seconds of the steps that refreshed; None: none")
    refresh_steps: int
    tokens: int
    tokens_per_s: float | None
    evaluation_s: Seconds
    wall_s: Seconds


class Evaluation(Strict):
    """All metrics at one point of the run; keys of `metrics` are "split/metric", values as the metric defines them."""

    step: int
    epoch: float | None
    rows: dict[str, int]
    metrics: dict[str, float | None] = Field(description="None where the metric is undefined (constant predictions)")


class CurvePoint(Strict):
    """One optimizer step as the loop saw it."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float | None
    rest_learning_rate: float | None = Field(default=None, description="None: the same as the learning rate")

    @model_serializer(mode="wrap")
    def _without_a_rate_that_is_the_same(self, write: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        # A point a step: what is not there is not written.
        found: dict[str, JsonValue] = write(self)
        if self.rest_learning_rate is None:
            found.pop("rest_learning_rate", None)
        return found


class DataFacts(Strict):
    """What was really loaded."""

    train_rows: int
    eval_rows: dict[str, int]
    official: bool
    notes: list[str] = []
    constant_scores: dict[str, float | None] = Field(
        default={}, description="scores of the best constant prediction, under the keys of `Evaluation.metrics`"
    )
    dropped_rows: int | None = Field(default=None, description="train rows left out since they stand in validation")
    eval_tokens: dict[str, int] = Field(default={}, description="predicted tokens of each evaluated split")
    eval_bytes: dict[str, int] = Field(default={}, description="bytes of raw text that the predicted tokens cover")
    floor_nats: dict[str, float] = Field(
        default={}, description="mean -log p of the predicted tokens under the source itself: no loss is expected below"
    )


class Record(Strict):
    """One run. Parts that were not reached before it ended are None."""

    schema_version: Literal[1] = 1
    plan: Plan
    plan_hash: str
    status: Status
    error: str | None = None
    started_at: str
    finished_at: str
    environment: Environment
    data: DataFacts | None = None
    engagement: Engagement | None = None
    memory: Memory | None = None
    timing: Timing | None = None
    evaluations: list[Evaluation] = []
    curve: list[CurvePoint] = []
    main_metric: str | None = Field(default=None, description='"split/metric" that stands for the task in tables')
    skipped_steps: int = 0
    resumed_at: list[int] = Field(default=[], description="steps from whose checkpoints the run went on")
    final_digest: str | None = Field(
        default=None, description="sha256 over all weights, buffers and optimizer state at the end"
    )
    catalogue: Catalogue | None = Field(
        default=None, description="what its method, suite, task and metrics are; None: see the committed catalogue"
    )
