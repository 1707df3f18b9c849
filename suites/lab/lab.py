"""The lab: a method's ledger at any size, batch and setting, over tensors without values, on a laptop.

A step is traced in halves (`suites.lab.halves`). Forward and backward run on four layers and are said again for the
rest (`splice`); the optimizer's half runs on the whole model. What settings share is traced once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from baselines.method import Placement
from baselines.registry import get_method
from baselines.shared import targets
from results.lab import Counted, MemoryCell, Parts, Setting
from results.schema import Layer, Peak
from suites.lab import splice
from suites.lab.halves import Half, Halves
from suites.lab.networks import Network
from suites.measure import allocator, live
from suites.measure.formula import Rest, formula_of, quantises, rest_of
from suites.measure.ledger import outside_formula
from suites.measure.trace import Category, Phase, Trace, peak_of
from suites.measure.tracker import track_load

PHASES: tuple[Phase, ...] = ("forward", "backward", "optimizer")
STATIC: tuple[Category, ...] = ("parameter", "buffer", "optimizer")


@dataclass(frozen=True)
class Whole:
    """What the whole model says at one width of the state: bytes at rest, and the optimizer's half of a step.

    `sizes`: of the single tensors at rest.
    """

    count: Counted
    sizes: Mapping[Category, Sequence[int]]
    finish: Trace
    refresh: Trace | None
    rules: Counter[str]
    outside: dict[str, int]


class Lab(Halves):
    """One network under one method at one rank and precision; `cell` answers for any setting of the rest.

    `widths` are the widths of the state that will be asked for: they share one model. `config` are settings of the
    method that differ from its own at this rank. `device` says whose rules are followed (`suites.measure.cuda`); all of
    it is traced on a processor. `work`: fine-tuning leaves embeddings and head of a language model to methods that
    train everything; None: what the matrix has, pre-training of language models. `base_bits`: linear layers as QLoRA
    keeps them, before the method is attached.

    Raises:
        ValueError: from every member, for settings that do not fit the network.
    """

    @cached_property
    def _kept(self) -> dict[tuple[object, ...], Half]:
        """The halves at full depth that have been asked for."""
        return {}

    def cell(self, setting: Setting) -> MemoryCell:
        """Return the ledger of one setting."""
        start = time.perf_counter()
        load, whole = self._whole(setting.state_bits)
        half, plain, again = self._step(setting)
        held = None if self.device == "cpu" else self._held(whole, plain, again)
        refresh = self._refresh_peak(setting, again)
        evaluation = splice.with_start(self._evaluation(setting).trace, _statics(whole.count))
        phases: dict[str, Peak] = {"load": load} | {str(phase): peak_of(plain, phase) for phase in PHASES}
        if refresh is not None:
            phases["refresh"] = refresh
        phases["evaluation"] = peak_of(evaluation)
        return MemoryCell(
            setting=setting,
            parameters=self._parameters,
            layers=half.layers,
            formula=self.formula(setting.state_bits),
            count=whole.count,
            state_outside=whole.outside,
            own_buffer_bytes=self._own_buffers,
            phases={name: parts_of(peak) for name, peak in phases.items() if peak.total_bytes},
            peak=parts_of(peak_of(plain)),
            allocated_bytes=None if held is None else held.allocated_bytes,
            reserved_bytes=None if held is None else held.reserved_bytes,
            by_rule=dict(sorted((half.rules + whole.rules).items())),
            seconds=round(time.perf_counter() - start, 2),
        )

    def peak_bytes(self, setting: Setting) -> int:
        """Return the highest total of a training step, one that refreshes bases included."""
        _, plain, again = self._step(setting)
        refresh = self._refresh_peak(setting, again)
        return max(peak_of(plain).total_bytes, refresh.total_bytes if refresh is not None else 0)

    def held(self, setting: Setting) -> allocator.Held:
        """Return the peaks of a training step, a refresh included, under a device's allocator."""
        _, plain, again = self._step(setting)
        return self._held(self._whole(setting.state_bits)[1], plain, again)

    def _held(self, whole: Whole, plain: Trace, again: Trace | None) -> allocator.Held:
        traces = [plain] if again is None else [plain, again]
        found = [allocator.held(trace, whole.sizes) for trace in traces]
        return allocator.Held(*map(max, *found)) if len(found) > 1 else found[0]

    def _refresh_peak(self, setting: Setting, again: Trace | None) -> Peak | None:
        # With per-layer updates, what an update takes lies within backward.
        return None if again is None else peak_of(again, None if setting.per_layer else "optimizer")

    def _step(self, setting: Setting) -> tuple[Half, Trace, Trace | None]:
        """Return the half, the whole plain step at full depth, and the whole step that refreshes bases."""
        _, whole = self._whole(setting.state_bits)
        half = self._half(setting)
        statics = _statics(whole.count)
        plain = splice.with_start(half.trace, statics)
        if setting.per_layer:
            return half, plain, None if half.refresh is None else splice.with_start(half.refresh, statics)
        again = None if whole.refresh is None else _joined(plain, whole.refresh)
        return half, _joined(plain, whole.finish), again

    def _whole(self, state_bits: int) -> tuple[Peak, Whole]:
        load, wholes = self._wholes
        if state_bits not in wholes:
            raise ValueError(f"state_bits {state_bits}: this lab was made for {', '.join(map(str, self.widths))}")
        return load, wholes[state_bits]

    def formula(self, state_bits: int) -> Counted:
        """Return the formula column."""
        layers, rest = self._shapes
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        found = formula_of(self.method, self.config, layers, rest, state_bits, dtype, self.updates)
        return Counted(**{name: getattr(found, name) for name in Counted.model_fields})

    @cached_property
    def _shapes(self) -> tuple[list[Layer], dict[str, Rest]]:
        with torch.device("meta"):
            model = self.network.model()
        placement = self.placement(model)
        found = targets.shapes(model, placement.targets)
        layers = [Layer(name=name, shape=shape) for name, shape in found.items()]
        rest = rest_of(model, placement, self.method, self.config)
        return layers, rest

    @cached_property
    def _own_buffers(self) -> int:
        with torch.device("meta"):
            model = self.network.model()
        return live.buffer_bytes(model.to(torch.bfloat16) if self.precision == "bf16" else model)

    @cached_property
    def _parameters(self) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.network.model().parameters())

    @cached_property
    def _wholes(self) -> tuple[Peak, dict[int, Whole]]:
        """Trace making the model, and the optimizer's half of a step on it at every width of the state."""
        with self._without_values() as rules:
            made, load = track_load(self.build, lambda built: (built[0], None))
            self.share(*made)
            return load, {bits: self._finished(*made, bits, rules) for bits in self.widths}

    def _finished(self, model: nn.Module, placement: Placement, state_bits: int, rules: Counter[str]) -> Whole:
        found = self.finished(model, placement, state_bits, rules)
        optimizer = found.optimizer
        count = Counted(
            weight_bytes=live.weight_bytes(model),
            adapter_bytes=self._adapter_bytes(model),
            gradient_bytes=found.gradient_bytes,
            state_bytes=live.state_bytes(optimizer, model),
            basis_bytes=live.basis_bytes(optimizer),
            buffer_bytes=live.buffer_bytes(model),
        )
        return Whole(count, found.sizes, found.finish, found.refresh, found.rules, outside_formula(optimizer))

    def _adapter_bytes(self, model: nn.Module) -> int:
        return live.weight_bytes(model) - self._original_bytes()

    def _original_bytes(self) -> int:
        if self.base_bits is not None:
            return live.weight_bytes(self._plain(None))
        if quantises(self.method, self.config, self._shapes[0]):
            return self.formula(32).weight_bytes - self.formula(32).adapter_bytes
        return self._parameters * (2 if self.precision == "bf16" else 4)

    def _half(self, setting: Setting) -> Half:
        bits = setting.state_bits if setting.per_layer else None
        changes = (setting.accumulation, setting.checkpointing, setting.recompute)
        key = ("half", setting.batch, setting.sequence, *changes, bits)
        return self._deep(key, lambda layers: self.trace_half(setting, layers))

    def _evaluation(self, setting: Setting) -> Half:
        key = ("evaluation", setting.batch, setting.sequence, setting.recompute)
        return self._deep(key, lambda layers: self._trace_evaluation(setting, layers))

    def _deep(self, key: tuple[object, ...], trace: Callable[[int | None], Half]) -> Half:
        """Return the trace at full depth: from a shallow model where its layers repeat, else from the whole one."""
        if key not in self._kept:
            self._kept[key] = self._deepened(trace) or trace(None)
        return self._kept[key]

    def _deepened(self, trace: Callable[[int | None], Half]) -> Half | None:
        layers = self.network.layers
        if layers is None or layers <= splice.SHALLOW:
            return None
        shallow = trace(splice.SHALLOW)
        try:
            whole = splice.deepen(shallow.trace, layers)
            refresh = None if shallow.refresh is None else splice.deepen(shallow.refresh, layers)
        except splice.NotPeriodicError:
            return None
        return Half(whole, refresh, layers, shallow.rules)


def plain_config(network: Network, method: str) -> dict[str, Any]:
    """Return where a method's settings differ here from its own: pre-training has no dropout, as in C4's profiles."""
    has_dropout = "dropout" in get_method(method).config_type.model_fields
    return {"dropout": 0.0} if network.language_model and has_dropout else {}


def parts_of(peak: Peak) -> Parts:
    """Return a peak without its total, which is the sum."""
    return Parts(**{name: size for name, size in peak.model_dump().items() if name in Parts.model_fields})


def _statics(count: Counted) -> dict[Category, int]:
    return {"parameter": count.weight_bytes, "buffer": count.buffer_bytes, "optimizer": count.state_bytes}


def _joined(half: Trace, finish: Trace) -> Trace:
    # What comes before the first event of the optimizer's own still belongs to backward, as in the loop's clock.
    return splice.join(half, finish, (*STATIC, "gradient"), {"forward": "backward"})
