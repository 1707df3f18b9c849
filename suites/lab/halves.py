"""The halves of a training step, traced over tensors without values: forward and backward, and the optimizer's.

One network under one method; a half can be traced on a model of a few layers (`suites.lab.lab` says it for the rest).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, Placement, Work, set_refresh_gap
from baselines.registry import get_method
from baselines.shared import targets
from gnlorp.layer import undecided
from gnlorp.weight_norm import waiting
from results.lab import DeviceKind, Precision, Setting
from suites.config import method_config
from suites.lab import loops, step
from suites.lab.networks import Network
from suites.lab.quantised import keep_in_four_bits
from suites.measure import live
from suites.measure.cuda import cuda_rules
from suites.measure.formula import is_plain
from suites.measure.predict import without_values
from suites.measure.trace import Category, Trace
from suites.measure.tracker import track
from suites.models import blocks_of, checkpoint_activations
from suites.recompute import recompute
from suites.run.distributed import ALONE
from suites.run.loop import apply_gradients
from suites.run.per_layer import PerLayer
from suites.run.rounding import Rounding, Updates, take_step
from suites.suite import Batch

NEVER = 10**9
TARGETS = "attention+mlp"


class _Decided(Exception):
    """Layers have decided what they keep for backward."""


@dataclass(frozen=True)
class Half:
    """The trace of forward and backward (or, with per-layer updates, of the whole step) at full depth."""

    trace: Trace
    refresh: Trace | None
    layers: int | None
    rules: Counter[str]


@dataclass(frozen=True)
class Finished:
    """An optimizer that has stepped, what its steps took, and the sizes of the single tensors at rest."""

    optimizer: Optimizer
    gradient_bytes: int
    finish: Trace
    refresh: Trace | None
    sizes: Mapping[Category, Sequence[int]]
    rules: Counter[str]


class Halves:
    """A network under a method at one rank and precision, built and traced as a run does it.

    The arguments are those of `suites.lab.lab.Lab`.
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

    def _track_finish(self, model: nn.Module, optimizer: Optimizer) -> Trace:
        step.give_gradients(optimizer)
        return loops.said_again(track(model, optimizer, lambda: apply_gradients(optimizer), look_into_foreign=False))

    def trace_half(self, setting: Setting, layers: int | Sequence[int] | None) -> Half:
        """Trace forward and backward, per layer the whole step, of a model of some layers, or of all."""
        # Made outside: a batch has values.
        batches = self.batches(setting)
        with self._without_values() as rules:
            model, placement = self.changed(setting, layers)
            if setting.per_layer:
                return self._trace_per_layer(model, placement, setting, batches, rules)
            return self.trace_backward(model, batches, rules, again=setting.computes_again)

    def batches(self, setting: Setting) -> list[Batch]:
        """Return the micro-batches of a step."""
        return [self.network.batch(setting.batch, setting.sequence) for _ in range(setting.accumulation)]

    def trace_backward(
        self, model: nn.Module, batches: Sequence[Batch], rules: Counter[str], settled: bool = False,
        again: bool = True,
    ) -> Half:  # fmt: skip
        """Trace forward and backward of a prepared model, within `without_values`.

        `settled`: it has had a step; `again`: some of its forward is computed again in backward.
        """
        run = self._run(model, batches, [])
        with self._rules(again):
            if self.method.settles and not settled:
                self._settle(model, batches[0], run)
                rules.clear()
            model.zero_grad(set_to_none=True)
            return Half(self._track(model, None, run), None, None, Counter(rules))

    def _settle(self, model: nn.Module, batch: Batch, run: Callable[[], None]) -> None:
        """Let layers decide what they keep: in a step that ends where backward reaches the first of them, which is when
        they do. Blocks that are checkpointed decide one by one: those need the whole step."""
        loss = self.loss(model, batch)
        with suppress(_Decided), _told_when_all_have():
            loss.backward()
        if any(undecided(module) for module in model.modules()):
            run()

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
            return self._traced_updates(model, placement, setting, batches, run, held, rules)

    def _traced_updates(
        self, model: nn.Module, placement: Placement, setting: Setting, batches: Sequence[Batch],
        run: Callable[[], None], held: list[Tensor], rules: Counter[str],
    ) -> Half:  # fmt: skip
        if self.method.settles:
            self._settle(model, batches[0], run)
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

    def _rules(self, again: bool = True) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(loops.short())
        if self.device == "cuda":
            say_more = again or self.precision == "bf16-autocast" or self.base_bits is not None
            stack.enter_context(cuda_rules(in_backward=say_more))
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


@contextmanager
def _told_when_all_have() -> Iterator[None]:
    """Raise `_Decided` when the layers that wait to decide have done so."""

    def tell() -> None:
        raise _Decided

    waiting.insert(0, tell)
    try:
        yield
    finally:
        if tell in waiting:
            waiting.remove(tell)


def _sizes(tensors: Iterable[Tensor]) -> list[int]:
    found = {storage._cdata: storage.nbytes() for tensor in tensors for storage in live.storages(tensor)}
    return list(found.values())
