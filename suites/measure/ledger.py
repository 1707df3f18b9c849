"""The ledger: formula, count and peak side by side, and a line for every gap between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from results.lab import Counted, MemoryCell
from results.schema import Layer, Ledger, LedgerGap, LedgerLine, Memory, Peak
from suites.measure import live, tracker
from suites.measure.formula import formula_of, quantises, rest_of
from suites.measure.trace import Phase, Trace, peak_of
from suites.resolved import Resolved
from suites.run.loop import autocast
from suites.suite import Job

STEP_PHASES: tuple[Phase, ...] = ("forward", "backward", "optimizer")


class Built(Protocol):
    """What a run has built."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def optimizer(self) -> Optimizer: ...
    @property
    def layers(self) -> list[Layer]: ...


def phase_peaks(trace: Trace) -> dict[str, Peak]:
    """Return the peak within each phase of a plain step; a phase that did not come is left out."""
    found = {str(phase): peak_of(trace, phase) for phase in STEP_PHASES}
    return {name: peak for name, peak in found.items() if peak.total_bytes}


def evaluation_peak(built: Built, job: Job, case: Resolved) -> Peak | None:
    """Return the peak of a forward at the largest evaluation batch; None where the job does not say which that is."""
    if job.evaluation is None:
        return None
    model, device = built.model, case.runtime.device
    inputs = {name: tensor.to(device) for name, tensor in job.evaluation.items() if name != "labels"}
    training = model.training
    model.eval()

    @torch.no_grad()
    def run() -> None:
        with autocast(model, case.training):
            model(**inputs)

    peak = peak_of(tracker.track(model, built.optimizer, run))
    model.train(training)
    return peak


def with_ledger(memory: Memory, built: Built, job: Job, case: Resolved, phases: Mapping[str, Peak]) -> Memory:
    """Return a run's memory with its ledger: the one call that a run makes."""
    with torch.device("meta"):
        plain = case.skeleton()
    rest = rest_of(plain, job.placement, case.method, case.config)
    dtype = torch.bfloat16 if case.training.precision == "bf16" else torch.float32
    training = case.training
    formula = formula_of(
        case.method, case.config, built.layers, rest, training.state_bits, dtype, training.bf16_updates
    )
    original = sum(parameter.numel() for parameter in plain.parameters()) * dtype.itemsize
    if quantises(case.method, case.config, built.layers):
        original = formula.weight_bytes - formula.adapter_bytes
    assert memory.gradient_bytes is not None
    count = Counted(
        weight_bytes=memory.weight_bytes,
        adapter_bytes=memory.weight_bytes - original,
        gradient_bytes=memory.gradient_bytes,
        state_bytes=memory.state_bytes,
        basis_bytes=memory.basis_bytes,
        buffer_bytes=memory.buffer_bytes,
    )
    by_formula = Counted(**{name: getattr(formula, name) for name in Counted.model_fields})
    assert memory.step_peak is not None
    outside = outside_formula(built.optimizer)
    own = live.buffer_bytes(plain.to(dtype))
    ledger = ledger_of(by_formula, count, memory.step_peak, phases, outside, own)
    return memory.model_copy(update={"ledger": ledger.model_copy(update={"gaps": ledger.gaps + run_gaps(memory)})})


def ledger_of(
    formula: Counted,
    count: Counted,
    peak: Peak,
    phases: Mapping[str, Peak],
    state_outside: Mapping[str, int],
    own_buffer_bytes: int,
) -> Ledger:
    """Return the ledger of a plain step.

    Args:
        state_outside: what an implementation keeps beside the formula's state, by its name.
        own_buffer_bytes: buffers of the model before the method was attached.
    """
    held = count.weight_bytes + count.buffer_bytes + count.gradient_bytes + count.state_bytes
    lines = [
        _line("weights", formula.weight_bytes, count.weight_bytes, peak.parameter_bytes),
        _line("of them adapters", formula.adapter_bytes, count.adapter_bytes, None),
        _line("gradients", formula.gradient_bytes, count.gradient_bytes, peak.gradient_bytes),
        _line("optimizer state", formula.state_bytes, count.state_bytes, peak.optimizer_bytes),
        _line("of it bases", formula.basis_bytes, count.basis_bytes, None),
        _line("buffers", formula.buffer_bytes, count.buffer_bytes, peak.buffer_bytes),
        _line("activations", None, None, peak.activation_bytes),
        _line("temporaries", None, None, peak.temporary_bytes),
        _line("batch and tables", None, None, peak.other_bytes),
        _line("total", None, held, peak.total_bytes),
    ]
    gaps = [
        gap("weights, count - formula", count.weight_bytes - formula.weight_bytes),
        gap("adapters, count - formula", count.adapter_bytes - formula.adapter_bytes),
        gap("gradients, count - formula", count.gradient_bytes - formula.gradient_bytes),
        gap("optimizer state, count - formula", count.state_bytes - formula.state_bytes, state_outside),
        gap("bases, count - formula", count.basis_bytes - formula.basis_bytes),
        gap(
            "buffers, count - formula",
            count.buffer_bytes - formula.buffer_bytes,
            {"buffers of the model itself": own_buffer_bytes},
        ),
        gap(
            "total, peak - count",
            peak.total_bytes - held,
            {
                "activations": peak.activation_bytes,
                "temporaries": peak.temporary_bytes,
                "batch and tables": peak.other_bytes,
                "weights gathered from shards": max(0, peak.parameter_bytes - count.weight_bytes),
                "gradients not there at that moment": peak.gradient_bytes - count.gradient_bytes,
                "new bases beside the old": max(0, peak.optimizer_bytes - count.state_bytes),
            },
        ),
    ]
    return Ledger(lines=lines, phases=dict(phases), gaps=gaps)


def cell_ledger(cell: MemoryCell) -> Ledger:
    """Return the ledger of a cell of the lab, whose step counters and tables are those of the counted state."""
    peak = Peak(total_bytes=cell.peak.total_bytes, **cell.peak.model_dump())
    phases = {name: Peak(total_bytes=parts.total_bytes, **parts.model_dump()) for name, parts in cell.phases.items()}
    return ledger_of(cell.formula, cell.count, peak, phases, cell.state_outside, cell.own_buffer_bytes)


def outside_formula(optimizer: Optimizer) -> dict[str, int]:
    """Return the bytes of what an optimizer keeps beside moments and bases: step counters and 8-bit code tables."""
    found: dict[str, int] = {}
    for key, tensor in live.held_tensors(optimizer):
        leaf = key.rpartition(".")[2]
        name = "step counters" if leaf == "step" else "code tables of 8-bit states" if "qmap" in key else None
        if name is not None:
            found[name] = found.get(name, 0) + live.storage_bytes([tensor])
    return found


def run_gaps(memory: Memory) -> list[LedgerGap]:
    """Return the gaps between the tracked peak and what was predicted, what the process grew, what a device saw."""
    assert memory.step_peak is not None
    peak = max(memory.step_peak.total_bytes, memory.refresh_peak.total_bytes if memory.refresh_peak else 0)
    gaps = []
    if memory.predicted_peak_bytes is not None:
        gaps.append(gap("peak, tracked - predicted", memory.step_peak.total_bytes - memory.predicted_peak_bytes))
    if memory.rss_peak_bytes is not None and memory.rss_start_bytes is not None:
        # Libraries, data and the allocator's own; nothing here can be told apart from outside.
        gaps.append(gap("process growth - tracked peak", memory.rss_peak_bytes - memory.rss_start_bytes - peak))
    allocated, reserved = memory.device_allocated_bytes, memory.device_reserved_bytes
    if allocated is not None:
        gaps.append(gap("device allocator - tracked peak", allocated - peak))
        if reserved is not None:
            gaps.append(gap("device reserved - allocated", reserved - allocated))
            if memory.predicted_reserved_bytes is not None:
                gaps.append(gap("device reserved, seen - predicted", reserved - memory.predicted_reserved_bytes))
    return gaps


def gap(name: str, size: int, explained: Mapping[str, int] | None = None) -> LedgerGap:
    """Return a gap and what is left of it once everything that explains it is taken off."""
    reasons = {reason: part for reason, part in (explained or {}).items() if part}
    return LedgerGap(name=name, gap_bytes=size, explained=reasons, unexplained_bytes=size - sum(reasons.values()))


def _line(name: str, formula: int | None, count: int | None, peak: int | None) -> LedgerLine:
    return LedgerLine(name=name, formula_bytes=formula, count_bytes=count, peak_bytes=peak)
