"""The lab: a method's ledger at any size, batch and setting, over tensors without values, on a laptop.

A step is traced in halves. Forward and backward run on four layers and are said again for the rest (`splice`); the
optimizer's half runs on the whole model. What settings share is traced once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, Placement, Work, set_refresh_gap
from baselines.registry import get_method
from baselines.shared import targets
from results.lab import Counted, DeviceKind, MemoryCell, Parts, Precision, Setting
from results.schema import Layer, Peak
from suites.config import method_config
from suites.lab import loops, splice, step
from suites.lab.networks import Network
from suites.lab.quantised import keep_in_four_bits
from suites.measure import allocator, live
from suites.measure.cuda import cuda_rules
from suites.measure.formula import Rest, formula_of, is_plain, quantises, rest_of
from suites.measure.ledger import outside_formula
from suites.measure.predict import without_values
from suites.measure.tracker import Category, Phase, Trace, peak_of, track, track_load
from suites.models import blocks_of, checkpoint_activations
from suites.recompute import recompute
from suites.run.distributed import ALONE
from suites.run.loop import apply_gradients
from suites.run.per_layer import PerLayer
from suites.run.rounding import Rounding, Updates, take_step
from suites.suite import Batch

NEVER = 10**9
TARGETS = "attention+mlp"
PHASES: tuple[Phase, ...] = ("forward", "backward", "optimizer")
STATIC: tuple[Category, ...] = ("parameter", "buffer", "optimizer")


@dataclass(frozen=True)
class Half:
    """The trace of forward and backward (or, with per-layer updates, of the whole step) at full depth."""

    trace: Trace
    refresh: Trace | None
    layers: int | None
    rules: Counter[str]


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


@dataclass(frozen=True)
class Finished:
    """An optimizer that has stepped, what its steps took, and the sizes of the single tensors at rest."""

    optimizer: Optimizer
    gradient_bytes: int
    finish: Trace
    refresh: Trace | None
    sizes: Mapping[Category, Sequence[int]]
    rules: Counter[str]


class Lab:
    """One network under one method at one rank and precision; `cell` answers for any setting of the rest.

    `widths` are the widths of the state that will be asked for: they share one model. `config` are settings of the
    method that differ from its own at this rank. `device` says whose rules are followed (`suites.measure.cuda`); all of
    it is traced on a processor. `work`: fine-tuning leaves embeddings and head of a language model to methods that
    train everything; None: what the matrix has, pre-training of language models. `base_bits`: linear layers as QLoRA
    keeps them, before the method is attached.

    Raises:
        ValueError: from every member, for settings that do not fit the network.
    """

    def __init__(
        self,
        network: Network,
        method: str,
        rank: int,
        precision: Precision = "fp32",
        widths: Sequence[int] = (32,),
        config: Mapping[str, Any] | None = None,
        device: DeviceKind = "cpu",
        updates: Updates = "nearest",
        work: Work | None = None,
        target_set: str = TARGETS,
        base_bits: Literal[4] | None = None,
    ) -> None:
        self.network = network
        self.trains_rest = network.language_model and work != "fine-tuning"
        self.target_set = target_set
        self.base_bits = base_bits
        self.updates = updates
        self.device = device
        self.method = get_method(method)
        self.rank = rank
        self.widths = tuple(widths)
        for width in self.widths:
            self.method.check_width(width)
        self.precision = precision
        self.config = method_config(method, rank, config or {})
        self.group = ALONE
        self._kept: dict[tuple[object, ...], Half] = {}

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

    def build(self, layers: int | Sequence[int] | None = None) -> tuple[nn.Module, Placement]:
        """Return the model with the method attached, made as a run makes it."""
        model = self._plain(layers)
        placement = self.placement(model)
        self.method.attach(model, placement, self.config)
        return model, placement

    def _plain(self, layers: int | Sequence[int] | None) -> nn.Module:
        model = self.network.model(layers)
        model = model.to(torch.bfloat16) if self.precision == "bf16" else model
        if self.base_bits is not None:
            keep_in_four_bits(model)
        return model

    def share(self, model: nn.Module, where: Placement) -> None:
        """Share a model out over processes, in place, once all else is done to it; here there is one."""

    def changed(self, setting: Setting, layers: int | Sequence[int] | None = None) -> tuple[nn.Module, Placement]:
        """Return the model as `build` makes it, with what the setting changes of it."""
        model, placement = self.build(layers)
        if setting.checkpointing:
            checkpoint_activations(model)
        recompute(model, setting.recompute)
        self.share(model, placement)
        return model, placement

    def placement(self, model: nn.Module) -> Placement:
        """Return where the method works in a model that it has not changed yet."""
        if is_plain(self.method, self.config) and not targets.linear_layers(model):
            return Placement((), tuple(name for name, _ in model.named_parameters()))
        return targets.place(model, self.target_set, self.trains_rest, train_head=not self.network.language_model)

    def optimizer(self, model: nn.Module, placement: Placement, state_bits: int) -> Optimizer:
        """Return the method's optimizer."""
        made = self.method.optimizer(model, placement, AdamSettings(1e-3, state_bits=state_bits), self.config)
        if self.updates != "nearest":
            Rounding(made, self.updates, seed=0)
        return made

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a micro-batch."""
        low = torch.autocast("cpu", torch.bfloat16) if self.precision == "bf16-autocast" else nullcontext()
        with low:
            found: Tensor = model(**batch).loss
        return found

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

    def finished(self, model: nn.Module, placement: Placement, state_bits: int, rules: Counter[str]) -> Finished:
        """Trace the optimizer's half of a step, a plain one and one that refreshes bases, within `without_values`."""
        optimizer = self.optimizer(model, placement, state_bits)
        step.give_gradients(optimizer)
        gradient_bytes = live.gradient_bytes(model)
        take_step(optimizer)
        set_refresh_gap(optimizer, NEVER)
        rules.clear()
        finish = self._track_finish(model, optimizer)
        used = Counter(rules)
        refreshes = set_refresh_gap(optimizer, 1)
        refresh = self._track_finish(model, optimizer) if refreshes else None
        sizes: dict[Category, Sequence[int]] = {
            "parameter": _sizes(model.parameters()),
            "buffer": _sizes(model.buffers()),
            "optimizer": _sizes(tensor for _, tensor in live.held_tensors(optimizer, model)),
        }
        return Finished(optimizer, gradient_bytes, finish, refresh, sizes, used)

    def _adapter_bytes(self, model: nn.Module) -> int:
        return live.weight_bytes(model) - self._original_bytes()

    def _original_bytes(self) -> int:
        if self.base_bits is not None:
            return live.weight_bytes(self._plain(None))
        if quantises(self.method, self.config, self._shapes[0]):
            return self.formula(32).weight_bytes - self.formula(32).adapter_bytes
        return self._parameters * (2 if self.precision == "bf16" else 4)

    def _track_finish(self, model: nn.Module, optimizer: Optimizer) -> Trace:
        step.give_gradients(optimizer)
        return loops.said_again(track(model, optimizer, lambda: apply_gradients(optimizer), look_into_foreign=False))

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

    def trace_half(self, setting: Setting, layers: int | Sequence[int] | None) -> Half:
        """Trace forward and backward, per layer the whole step, of a model of some layers, or of all."""
        # Made outside: a batch has values.
        batches = self.batches(setting)
        with self._without_values() as rules:
            model, placement = self.changed(setting, layers)
            if setting.per_layer:
                return self._trace_per_layer(model, placement, setting, batches, rules)
            return self.trace_backward(model, batches, rules)

    def batches(self, setting: Setting) -> list[Batch]:
        """Return the micro-batches of a step."""
        return [self.network.batch(setting.batch, setting.sequence) for _ in range(setting.accumulation)]

    def trace_backward(
        self, model: nn.Module, batches: Sequence[Batch], rules: Counter[str], settled: bool = False
    ) -> Half:
        """Trace forward and backward of a prepared model, within `without_values`; `settled`: it has had a step."""
        run = self._run(model, batches, [])
        with self._rules():
            if self.method.settles and not settled:
                run()
                rules.clear()
            model.zero_grad(set_to_none=True)
            return Half(self._track(model, None, run), None, None, Counter(rules))

    def _run(self, model: nn.Module, batches: Sequence[Batch], held: list[Tensor]) -> Callable[[], None]:
        def run() -> None:
            held[:] = [step.forward_backward(model, batches, self.loss)]

        return run

    def _trace_per_layer(
        self, model: nn.Module, placement: Placement, setting: Setting, batches: Sequence[Batch], rules: Counter[str]
    ) -> Half:
        held: list[Tensor] = []
        run = self._run(model, batches, held)
        with self._rules():
            return self._traced_updates(model, placement, setting, run, held, rules)

    def _traced_updates(
        self, model: nn.Module, placement: Placement, setting: Setting, run: Callable[[], None], held: list[Tensor],
        rules: Counter[str],
    ) -> Half:  # fmt: skip
        if self.method.settles:
            run()
        optimizer = self.optimizer(model, placement, setting.state_bits)
        step.give_gradients(optimizer)
        take_step(optimizer)
        optimizer.zero_grad(set_to_none=True)
        refreshes = set_refresh_gap(optimizer, NEVER)
        updates = PerLayer(optimizer, setting.accumulation, group=self.group)
        rules.clear()

        def update() -> None:
            run()
            updates.finish()

        trace = self._track(model, optimizer, update)
        used = Counter(rules)
        held.clear()
        set_refresh_gap(optimizer, 1)
        return Half(trace, self._track(model, optimizer, update) if refreshes else None, None, used)

    def _without_values(self) -> AbstractContextManager[Counter[str]]:
        return without_values()

    def _rules(self) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(loops.short())
        if self.device == "cuda":
            stack.enter_context(cuda_rules())
        return stack

    def _track(self, model: nn.Module, optimizer: Optimizer | None, run: Callable[[], None]) -> Trace:
        return loops.said_again(track(model, optimizer, run, look_into_foreign=False, blocks=blocks_of(model)))

    def _trace_evaluation(self, setting: Setting, layers: int | None) -> Half:
        batch = self.network.batch(setting.batch, setting.sequence)
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with self._without_values() as rules, self._rules():
            # Blocks that are checkpointed keep nothing in an evaluation, nor do others.
            model, _ = self.changed(setting.model_copy(update={"checkpointing": False}), layers)
            model.eval()

            @torch.no_grad()
            def run() -> None:
                self.loss(model, batch) if self.network.language_model else model(**inputs)

            return Half(self._track(model, None, run), None, None, Counter(rules))


def plain_config(network: Network, method: str) -> dict[str, Any]:
    """Return where a method's settings differ here from its own: pre-training has no dropout, as in C4's profiles."""
    has_dropout = "dropout" in get_method(method).config_type.model_fields
    return {"dropout": 0.0} if network.language_model and has_dropout else {}


def parts_of(peak: Peak) -> Parts:
    """Return a peak without its total, which is the sum."""
    return Parts(**{name: size for name, size in peak.model_dump().items() if name in Parts.model_fields})


def _statics(count: Counted) -> dict[Category, int]:
    return {"parameter": count.weight_bytes, "buffer": count.buffer_bytes, "optimizer": count.state_bytes}


def _sizes(tensors: Iterable[Tensor]) -> list[int]:
    found = {storage._cdata: storage.nbytes() for tensor in tensors for storage in live.storages(tensor)}
    return list(found.values())


def _joined(half: Trace, finish: Trace) -> Trace:
    # What comes before the first event of the optimizer's own still belongs to backward, as in the loop's clock.
    return splice.join(half, finish, (*STATIC, "gradient"), {"forward": "backward"})
