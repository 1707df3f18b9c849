"""Records of the memory lab: cells (one setting each) and recomputed claims. Strict, no torch, bytes are integers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from results.catalogue import Catalogue
from results.schema import Bytes, Strict
from results.store import read_single, write_atomically

Precision = Literal["fp32", "bf16", "bf16-autocast"]
DeviceKind = Literal["cpu", "cuda"]


class Setting(Strict):
    """Everything a cell's bytes depend on."""

    model: str
    method: str
    rank: int = Field(ge=1)
    batch: int = Field(ge=1, description="sequences a micro-batch")
    sequence: int = Field(ge=1, description="tokens a sequence, none of them padding")
    accumulation: int = Field(default=1, ge=1, description="micro-batches a step, of one process")
    precision: Precision = "fp32"
    bf16_updates: Literal["nearest", "stochastic", "kahan", "master"] = "nearest"
    state_bits: Literal[8, 32] = 32
    per_layer: bool = False
    checkpointing: bool = False
    recompute: tuple[Literal["norms", "mlp", "loss"], ...] = ()
    processes: int = Field(default=1, ge=1, description="that a step is shared out to; the cell is of one of them")
    shard: Literal["all", "frozen"] | None = Field(default=None, description="weights that are sharded over them")
    device: DeviceKind = Field(default="cpu", description="whose rules of precision and attention are followed")
    variant: str = Field(default="", description="what sets the row apart from its method, as the method calls it")
    work: Literal["fine-tuning", "pre-training"] | None = Field(
        default=None, description="of language models; None: pre-training, as all of the matrix"
    )
    targets: str = Field(default="attention+mlp", description="set or endings of the layers that methods work on")
    base_bits: Literal[4] | None = Field(default=None, description="of frozen linear layers, as QLoRA keeps them")
    config: tuple[tuple[str, str | int | float | bool], ...] = Field(
        default=(), description="settings of the method that differ from its own at this rank"
    )

    @property
    def computes_again(self) -> bool:
        """Whether some of the forward is computed a second time, within backward."""
        return self.checkpointing or bool(self.recompute)


class Parts(Strict):
    """Tracked bytes at the moment of the highest total, by category."""

    parameter_bytes: Bytes = 0
    buffer_bytes: Bytes = 0
    gradient_bytes: Bytes = 0
    activation_bytes: Bytes = 0
    temporary_bytes: Bytes = 0
    optimizer_bytes: Bytes = 0
    other_bytes: Bytes = 0

    @property
    def total_bytes(self) -> int:
        """Return the sum of all categories."""
        return sum(self.model_dump().values())


class Counted(Strict):
    """One column of the ledger. Adapters are among the weights, bases among the state."""

    weight_bytes: Bytes
    adapter_bytes: Bytes
    gradient_bytes: Bytes
    state_bytes: Bytes
    basis_bytes: Bytes
    buffer_bytes: Bytes


class MemoryCell(Strict):
    """What one setting costs: by formula, by count, and at the peak of each phase, all over tensors without values."""

    setting: Setting
    parameters: int = Field(description="of the model before the method was attached")
    layers: int | None = Field(description="repeated layers; None: the model was traced whole")
    formula: Counted
    count: Counted
    state_outside: dict[str, Bytes] = Field(default={}, description="counted state that no formula speaks of")
    own_buffer_bytes: Bytes = Field(default=0, description="buffers of the model before the method was attached")
    phases: dict[str, Parts] = Field(description="load, forward, backward, optimizer, refresh, evaluation")
    peak: Parts = Field(description="of a plain step: the highest of forward, backward, optimizer")
    allocated_bytes: Bytes | None = Field(
        default=None, description="peak of the allocator's blocks over a training step; None: not on a device"
    )
    reserved_bytes: Bytes | None = Field(
        default=None, description="peak of the segments that hold them; None: likewise"
    )
    by_rule: dict[str, int] = Field(
        default={}, description="rules that stood in for what cannot be traced, and how often"
    )
    seconds: float = Field(ge=0, description="spent on this cell's own traces")


class MemoryCells(Strict):
    """The cells of one model, in the order they were made."""

    schema_version: Literal[1] = 1
    cells: list[MemoryCell]
    catalogue: Catalogue | None = Field(default=None, description="what the methods are; None: see the committed one")


def read_cells(path: Path) -> list[MemoryCell]:
    """Return the cells in a file; none where there is no file.

    Raises:
        StoreError: the file is not of this schema.
    """
    return read_cell_file(path).cells if path.exists() else []


def read_cell_file(path: Path) -> MemoryCells:
    """Return the cells in a file, and what their methods are.

    Raises:
        StoreError: the file is not of this schema.
    """
    return read_single(path, MemoryCells, "a file of memory cells", "; move the file away and run again")


def write_cells(path: Path, cells: list[MemoryCell], catalogue: Catalogue | None = None) -> Path:
    """Write the cells atomically, one a line, fields at their default left out, and what their methods are."""
    lines = [json.dumps(cell.model_dump(mode="json", exclude_defaults=True), separators=(",", ":")) for cell in cells]
    known = "" if catalogue is None else f', "catalogue": {catalogue.model_dump_json(exclude_defaults=True)}'
    text = '{"schema_version": 1, "cells": [\n' + ",\n".join(lines) + f"\n]{known}}}\n"
    return write_atomically(path, text.encode())


class Fit(Strict):
    """What one estimate of a device's memory says of one method."""

    asked_bytes: Bytes = Field(description="of a step at the batch that was asked about")
    fits: bool = Field(description="whether that is within the limit")
    largest_batch: int = Field(ge=0, description="0: not even one row fits")
    takes_bytes: Bytes | None = Field(description="of a step at the largest batch; None: none fits")
    next_bytes: Bytes | None = Field(description="of a step of one row more; None: no larger batch was looked at")


class FitsRow(Strict):
    """One method on one model under a limit; `refused` says why there is nothing else."""

    method: str
    title: str
    rank: int
    refused: str | None = None
    trains: str = ""
    trained_parameters: int = 0
    weight_bytes: Bytes = Field(default=0, description="what the method adds and tables of 4-bit weights included")
    gradient_bytes: Bytes = 0
    state_bytes: Bytes = 0
    state_dtypes: dict[str, Bytes] = Field(default={}, description="bytes of the state by dtype")
    parts: dict[str, Bytes] = Field(default={}, description="tensors at the highest moment of a step at that batch")
    estimates: dict[Literal["low", "expected", "high"], Fit] = {}


class FitsAnswer(Strict):
    """What fits: one model, every method asked about. `setting` is the question's, its method and config left open."""

    schema_version: Literal[1] = 1
    model: str
    sources: list[str] = Field(description="where the configuration stands; empty: built in, or a folder's own")
    parameters: int
    limit_bytes: Bytes
    work: Literal["fine-tuning", "pre-training"]
    precision: Precision
    batch: int
    sequence: int
    accumulation: int
    state_bits: int
    base_bits: int | None
    targets: str
    not_adapted: list[str] = Field(description="matrices that the set of targets means and no method works on")
    options: list[str] = Field(description="per-layer, checkpointing, recomputed parts, rule for updates in bf16")
    tied_head: bool
    rows: list[FitsRow]
    accelerate_bytes: dict[str, int] = Field(description="what accelerate's estimate-memory says, whatever the batch")
    seconds: float


Quantity = Literal["weights+state", "weights", "state", "cut of state", "fits", "order by estimate", "order by peak"]


class Claim(Strict):
    """One published number of memory, as printed."""

    id: str
    source: str
    method: str
    model: str = Field(description='"any": the source does not say')
    ranks: list[int] = Field(description="ranks that the source could mean")
    quantity: Quantity
    value: float
    unit: Literal["G", "M", "%"]
    digits: int = Field(ge=0, description="decimals as printed")
    state_bits: Literal[8] | None = None
    other: str | None = Field(default=None, description="the method that an order compares with")


class Attempt(Strict):
    """What the claim's number is under one convention, and whether it prints the same."""

    convention: str
    value: float
    holds: bool


class Recomputed(Strict):
    """A claim recomputed: how many conventions were tried, which of them reproduce it, and the nearest one."""

    claim: Claim
    tried: int
    holding: int
    attempts: list[Attempt] = Field(description="the first that reproduce it, else the nearest")
    words: str


class PublishedMethod(Strict):
    """A method of published claims alone: whose values it has, and whether its factors replace the weight."""

    counted_as: str
    replaces: bool = False


class Claims(Strict):
    """Published claims, and the methods among them that nothing here trains."""

    schema_version: Literal[1] = 1
    methods: dict[str, PublishedMethod] = {}
    claims: list[Claim]


class Rule(Strict):
    """How many cells of one published table one convention reproduces."""

    table: str
    convention: str
    cells: int
    holding: int


class RecomputedClaims(Strict):
    """Recomputed claims, and the best single convention of each published table."""

    schema_version: Literal[1] = 1
    verdicts: list[Recomputed]
    rules: list[Rule]


PUBLISHED = Path(__file__).parent / "published" / "memory_claims.json"


def read_claims(path: Path = PUBLISHED) -> list[Claim]:
    """Return the published claims."""
    return Claims.model_validate_json(path.read_bytes()).claims


@cache
def published_methods(path: Path = PUBLISHED) -> dict[str, PublishedMethod]:
    """Return the methods that the published claims alone speak of, by name."""
    return Claims.model_validate_json(path.read_bytes()).methods


def read_verdicts(path: Path) -> RecomputedClaims:
    """Return recomputed claims.

    Raises:
        StoreError: no such file, or one that is not of this schema.
    """
    return read_single(path, RecomputedClaims, "a file of recomputed claims", "; run `python -m suites claims`")


def write_verdicts(path: Path, found: RecomputedClaims) -> Path:
    """Write recomputed claims atomically, one a line."""
    parts = json.loads(found.model_dump_json(exclude_defaults=True))
    lists = [f'"{name}": [\n' + ",\n".join(map(json.dumps, parts[name])) + "\n]" for name in ("verdicts", "rules")]
    return write_atomically(path, ('{"schema_version": 1, ' + ", ".join(lists) + "}\n").encode())
