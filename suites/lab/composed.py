"""A step at any batch and depth from traces of a few layers: quick enough to ask for every method and many models.

    bytes of an event = a + b rows         forward and backward, from traces at two batches           `lines.line_of`
    events of N layers = those of a few, with a layer's stretch said again                             `splice.arrange`
    optimizer's half of N layers = that of L + 1, with what L lack said N - L times                `lines.more_layers`

Each is checked where it is used (traces must agree event by event, else the whole model is traced) and, by tests,
against the trace of the whole model. Forward and backward are shared by methods that leave a model built alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from baselines.method import Placement
from baselines.shared import targets
from results.lab import Setting
from suites.lab import lines, loops, splice
from suites.lab.fits import MOST_ROWS
from suites.lab.lab import Lab
from suites.lab.lines import CATEGORIES, KEPT, ROWS, Line
from suites.measure import allocator, live
from suites.measure.predict import fake_mode, without_values
from suites.measure.trace import Category, Trace
from suites.models import block_list
from suites.suite import Batch

NOTED = ("peft_config", "use_rslora", "scaling")
"""What peft writes down on modules and does not compute with, and the factor that it multiplies by whatever it is."""
SHOWN = 2
"""The layer that is traced beside the one before it, where all between first and last are of a kind, to see that so."""


@dataclass(frozen=True)
class Rest:
    """What a model holds between steps, and what its optimizer's half of a step changes.

    Attributes:
        sizes: of the single tensors at rest.
        trained: number of values that are trained.
        dtypes: bytes of the optimizer's state by dtype.
    """

    sizes: Mapping[Category, list[int]]
    trained: int
    gradient_bytes: int
    dtypes: Mapping[str, int]
    finish: Line
    refresh: Line | None


@dataclass(frozen=True)
class Shared:
    """What methods that leave a model built alike have of one another, at one setting.

    Attributes:
        halves: forward and backward; None where each batch is traced by itself.
        rests: what is at rest, and peaks by rows, where the optimizer is AdamW over the same tensors too.
    """

    halves: dict[Hashable, Line | None] = field(default_factory=dict)
    rests: dict[Hashable, tuple[Rest, dict[int, allocator.Held]]] = field(default_factory=dict)


class Composed:
    """The steps of one lab at one setting of everything but the batch.

    Args:
        shared: what other methods have traced on the same network; filled.

    Raises:
        ValueError: settings that do not fit the network.
        RuntimeError: from torch, where a step needs values that are not there.
    """

    def __init__(self, lab: Lab, setting: Setting, shared: Shared) -> None:
        self.lab = lab
        self.setting = setting
        self._shared = shared.halves
        self._kinds = lab.network.kinds
        self.read_whole = False
        # The model that has had a step, once it has the fewest layers: for batches that are traced by themselves.
        self._settled: list[nn.Module] = []
        # Steps that have been put together, by rows (0: one line for all) and whether they refresh bases.
        self._whole: dict[tuple[int, bool], Line] = {}
        batches = {rows: lab.batches(self._at(rows)) for rows in (1, *ROWS)}
        with torch.device("meta"):
            plain = lab.network.model(self._chosen)
        self.left_out = targets.left_out(plain, setting.targets) if lab.placement(plain).targets else ()
        self._fakes = fake_mode()
        with without_values(self._fakes) as rules, loops.short():
            model, placement = lab.changed(setting, self._chosen)
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise ValueError(f"{setting.method} trains nothing here: no adapters, and embeddings and head stay")
            self._key: tuple[Hashable, ...] = (structure(model), lab.method.settles, lab.precision, *self._sharing())
            self.placement = placement
            alike = self._alike(model, placement)
            if not setting.per_layer and self._key not in self._shared:
                # Where layers decide in a step of their own, loops over tokens are likely: one row first.
                start = 1 if lab.method.settles else ROWS[0]
                first = self._backward(model, batches[start], rules, start)
                found = self._deep(first, first, self._chosen)
                self._shared[self._key] = None
                if start == 1:
                    self._shared[(*self._key, 1, False)] = found
                straight = found is not None and lines.grows_straight(first)
                if straight and start > 1:
                    second = self._backward(model, batches[ROWS[1]], rules, ROWS[1])
                    self._shared[self._key] = self._deep(first, second, self._chosen)
                if found is not None:
                    # That layers of one kind do the same has been seen.
                    model = self._with_fewest(model)
                if straight and start == 1:
                    two = [self._backward(model, batches[rows], rules, rows) for rows in ROWS]
                    self._shared[self._key] = self._deep(two[0], two[1], self._fewest)
                elif found is not None and not straight and lab.method.settles and self._chosen is not None:
                    # Settled: batches that are traced by themselves take this one.
                    self._settled.append(model)
                    model, placement = lab.changed(setting, self._fewest)
            if alike not in shared.rests:
                shared.rests[alike] = self._rest(model, placement, rules), {}
            self.rest, self._held = shared.rests[alike]

    @cached_property
    def _chosen(self) -> list[int] | None:
        """Which layers are traced: the first, the last, and of those between two of the one kind, or one of each."""
        last = len(self._kinds) - 1
        if last < splice.SHALLOW:
            return None
        between = [self._kinds.index(kind, 1, last) for kind in dict.fromkeys(self._kinds[1:last])]
        return sorted({0, *between, *((1, 2) if len(between) == 1 else ()), last})

    @cached_property
    def _fewest(self) -> list[int] | None:
        """The layers without the one that only shows that layers of one kind do the same."""
        alike = len(set(self._kinds[1:-1])) == 1
        return None if self._chosen is None else [at for at in self._chosen if not (alike and at == SHOWN)]

    def _with_fewest(self, model: nn.Module) -> nn.Module:
        """Take the layers that are not among the fewest out of a model of those chosen."""
        blocks = block_list(model)
        if blocks is not None and self._fewest != self._chosen:
            del blocks[SHOWN]
        return model

    def _sharing(self) -> tuple[Hashable, ...]:
        setting = self.setting
        own = (setting.method, setting.config, setting.state_bits) if setting.per_layer else ()
        return (setting.sequence, setting.accumulation, setting.checkpointing, setting.recompute, setting.device, own)

    def _at(self, rows: int) -> Setting:
        return self.setting.model_copy(update={"batch": rows})

    def _deep(self, first: Trace, second: Trace, chosen: Sequence[int] | None) -> Line | None:
        """Return the changes of all layers from those of some, at two batches; None where they are not of that form."""
        try:
            line = lines.line_of(first, second)
            if chosen is not None:
                order = splice.arrange(first, chosen, self._kinds)
                line = lines.handed_on(line, first).at(order)
        except splice.NotPeriodicError:
            return None
        return line.changes()

    def _backward(self, model: nn.Module, batches: list[Batch], rules: Counter[str], rows: int) -> Trace:
        # A single batch does not say how its bytes grow with the tokens.
        with loops.few(rows * self.setting.sequence, collapse=rows in ROWS):
            again = self.setting.computes_again
            return self.lab.trace_backward(model, batches, rules, rows > 1, again).trace

    def _alike(self, model: nn.Module, placement: Placement) -> Hashable:
        """Return all that decides what a model and its optimizer hold; of other optimizers than AdamW the method."""
        optimizer = self.lab.optimizer(model, placement, self.setting.state_bits)
        if type(optimizer) is not torch.optim.AdamW:
            return self._key, self.setting.method
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = [
            (*(names[id(each)] for each in group.pop("params")), _decides(group))
            for group in map(dict, optimizer.param_groups)
        ]
        return self._key, tuple(groups)

    def _rest(self, model: nn.Module, placement: Placement, rules: Counter[str]) -> Rest:
        """Return what the whole model holds, from two shallow ones where a layer more says itself again."""
        whole, blocks = len(self._kinds), block_list(model)
        if blocks is None or self._chosen is None:
            return self._rest_of(model, placement, rules)
        few = 1 if _shapes(blocks[0]) == _shapes(blocks[1]) else 2
        found = []
        for layers in (few + 1, few):
            del blocks[layers:]
            found.append(self._rest_of(model, _still_there(placement, model), rules))
        try:
            return _extended(found[1], found[0], whole - few)
        except splice.NotPeriodicError:
            # A step that hands temporaries on from matrix to matrix (Muon's) is read whole.
            self.read_whole = True
            return self._rest_of(*self.lab.build(), rules)

    def _rest_of(self, model: nn.Module, placement: Placement, rules: Counter[str]) -> Rest:
        made = self.lab.finished(model, placement, self.setting.state_bits, rules)
        dtypes: Counter[str] = Counter()
        for _, tensor in live.held_tensors(made.optimizer, model):
            dtypes[str(tensor.dtype).removeprefix("torch.")] += tensor.untyped_storage().nbytes()
        model.zero_grad(set_to_none=True)
        return Rest(
            sizes={category: list(sizes) for category, sizes in made.sizes.items()},
            trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
            gradient_bytes=made.gradient_bytes,
            dtypes=dtypes,
            finish=lines.line_of(made.finish, made.finish).changes(),
            refresh=None if made.refresh is None else lines.line_of(made.refresh, made.refresh).changes(),
        )

    def step(self, rows: int, refresh: bool = False) -> Line | None:
        """Return the changes of a whole step of `rows` rows; None where no step refreshes bases."""
        finish = self.rest.refresh if refresh else self.rest.finish
        if finish is None:
            return None
        per_layer = self.setting.per_layer
        half = None if per_layer or rows < ROWS[0] else self._shared[self._key]
        key = (rows if half is None else 0, refresh)
        if key not in self._whole:
            own = half or self._own(rows, refresh and per_layer)
            self._whole[key] = lines.joined(lines.at_rest(self.rest.sizes), own, None if per_layer else finish)
        return self._whole[key]

    def _own(self, rows: int, refresh: bool = False) -> Line:
        """Return forward and backward (per layer: the step) from a trace at this batch alone.

        So one row is, where what else is a copy may be a view, and what is no straight line in the rows.
        """
        key = (*self._key, rows, refresh)
        found = self._shared.get(key)
        if found is None and self._chosen is not None and key not in self._shared:
            trace = self._traced(rows, refresh, self._fewest)
            found = self._deep(trace, trace, self._fewest)
        if found is None:
            trace = self._whole_traced(rows, refresh)
            found = lines.line_of(trace, trace).changes()
        self._shared[key] = found
        return found

    def _traced(self, rows: int, refresh: bool, layers: Sequence[int] | None) -> Trace:
        if self.setting.per_layer:
            return self._whole_traced(rows, refresh, layers)
        batches = self.lab.batches(self._at(rows))
        with loops.few(rows * self.setting.sequence, collapse=False), without_values(self._fakes) as rules:
            settled = bool(self._settled)
            if not settled:
                self._settled.append(self.lab.changed(self.setting, layers)[0])
            again = self.setting.computes_again
            return self.lab.trace_backward(self._settled[0], batches, rules, settled, again).trace

    def _whole_traced(self, rows: int, refresh: bool, layers: Sequence[int] | None = None) -> Trace:
        with loops.few(rows * self.setting.sequence, collapse=False):
            half = self.lab.trace_half(self._at(rows), layers)
        trace = half.refresh if refresh else half.trace
        assert trace is not None
        return trace

    def rows_within(self, limit_bytes: int) -> tuple[int, int]:
        """Return about how many rows a step has whose tensors take so much, and about what one row more takes there."""
        if self._shared.get(self._key) is None:
            # Each batch is a trace of its own: what one row has there beside what is at rest is near enough.
            slope = sum(size for name, size in self.parts(1).items() if name not in KEPT)
            return 1 + int((limit_bytes - self.tensor_bytes(1)) / max(1, slope)), slope
        rows = MOST_ROWS
        while True:
            # The highest of straight lines, come to from the right: each round ends on a line that is less steep.
            takes = self.tensor_bytes(rows)
            slope = self.tensor_bytes(rows + 1) - takes
            over = takes - limit_bytes
            if over <= 0 or slope < 1 or rows == ROWS[0]:
                return rows, slope
            rows = max(ROWS[0], rows - -(-over // slope))

    def tensor_bytes(self, rows: int) -> int:
        """Return the highest sum of tensors in a step of `rows` rows, one that refreshes bases included."""
        return max(int(np.cumsum(step.bytes).max()) for step in self._steps(rows))

    def parts(self, rows: int) -> dict[Category, int]:
        """Return the bytes by category at the moment of that sum."""
        step = max(self._steps(rows), key=lambda each: int(np.cumsum(each.bytes).max()))
        end = int(np.cumsum(step.bytes).argmax()) + 1
        sums = np.zeros(len(CATEGORIES), dtype=np.int64)
        np.add.at(sums, step.category[:end], step.bytes[:end])
        return dict(zip(CATEGORIES, sums.tolist(), strict=True))

    def held(self, rows: int) -> allocator.Held:
        """Return the peaks of a step of `rows` rows under a device's allocator, a refresh included."""
        if rows not in self._held:
            steps = self._steps(rows)
            first, last = steps[0], steps[-1]
            # A plain step and one that refreshes bases are one until the optimizer's half.
            shortest = min(len(step.bytes) for step in steps) - self._late
            differ = [one[:shortest] != other[:shortest] for one, other in zip(first[:2], last[:2], strict=True)]
            differs = np.flatnonzero(np.logical_or(*differ))
            alike = int(differs[0]) if len(differs) else shortest
            ends = [(step.storage[alike:], step.bytes[alike:]) for step in steps]
            self._held[rows] = allocator.replay((first.storage[:alike], first.bytes[:alike]), ends)
        return self._held[rows]

    @cached_property
    def _late(self) -> int:
        """Changes of the optimizer's half at the end of the shortest step."""
        ways = (self.rest.finish, self.rest.refresh)
        late = [int((way.start != 1).sum()) for way in ways if way is not None]
        return 0 if self.setting.per_layer else min(late)

    def _steps(self, rows: int) -> list[lines.Batch]:
        found = (self.step(rows), self.step(rows, refresh=True))
        return [line.at_batch(rows, self.setting.sequence) for line in found if line is not None]


def structure(model: nn.Module) -> str:
    """Return all that decides what a model's forward and backward take: modules, plain settings, tensors' shapes."""
    said = []
    for name, module in model.named_modules():
        own = {
            key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str, dict, tuple))
        }
        decides = {key: value for key, value in own.items() if not key.startswith("_") and key not in NOTED}
        plain = {key: _decides(value) for key, value in decides.items()}
        tensors = [
            (key, tuple(tensor.shape), str(tensor.dtype), tensor.requires_grad)
            for held in (module._parameters, module._buffers)
            for key, tensor in held.items()
            if tensor is not None
        ]
        said.append(f"{name} {type(module).__module__}.{type(module).__qualname__} {plain} {tensors}")
    return "\n".join(said)


def _decides(value: object) -> str:
    """Return what of a plain setting decides what is computed: of a factor only whether it is 0 or 1."""
    if isinstance(value, float):
        return repr(value) if value in (0.0, 1.0) else "a factor"
    if isinstance(value, dict):
        return repr({key: _decides(each) for key, each in value.items()})
    return repr(value)


def _extended(fewer: Rest, more: Rest, times: int) -> Rest:
    def line(first: int, second: int) -> int:
        return second + (times - 1) * (second - first)

    refresh = None
    if fewer.refresh is not None and more.refresh is not None:
        refresh = lines.more_layers(fewer.refresh, more.refresh, times)
    return Rest(
        sizes={each: lines.more_sizes(fewer.sizes[each], sizes, times) for each, sizes in more.sizes.items()},
        trained=line(fewer.trained, more.trained),
        gradient_bytes=line(fewer.gradient_bytes, more.gradient_bytes),
        dtypes={name: line(fewer.dtypes.get(name, 0), size) for name, size in more.dtypes.items()},
        finish=lines.more_layers(fewer.finish, more.finish, times),
        refresh=refresh,
    )


def _still_there(placement: Placement, model: nn.Module) -> Placement:
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    return Placement(
        tuple(name for name in placement.targets if name in modules),
        tuple(name for name in placement.trained if name in parameters),
    )


def _shapes(block: nn.Module) -> list[tuple[str, torch.Size]]:
    tensors: dict[str, Any] = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    return [(name, tensor.shape) for name, tensor in tensors.items()]
