"""The contract of a training method: what it does to a model, which optimizer it brings, and what that costs.

Shapes: `O` output units, `I` input units of a target linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.optim import Optimizer

from gnlorp.moments import optimizer_state_bytes
from gnlorp.projection import projected_shape, projected_sides

Work = Literal["fine-tuning", "pre-training"]


class MethodConfig(BaseModel):
    """Settings of one method: frozen, unknown names refused. Every default names its source in its description."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    later: ClassVar[frozenset[str]] = frozenset()
    """Settings that came after records were written: left out of a plan at their default, so that its hash stays."""

    def settings(self) -> dict[str, Any]:
        """Return the settings as a plan holds them."""
        defaults = {name: type(self).model_fields[name].default for name in self.later}
        return {
            name: value
            for name, value in self.model_dump(mode="json").items()
            if name not in defaults or value != defaults[name]
        }


class RestartConfig(MethodConfig):
    """Settings of a method whose factors can be merged into the weight and begun anew (ReLoRA, arXiv 2307.05695)."""

    later: ClassVar[frozenset[str]] = frozenset({"merge_gap", "rewarm_steps"})
    merge_gap: int = Field(default=0, ge=0, description="steps between merges of the factors into the weight; 0: never")
    rewarm_steps: int = Field(
        default=0, ge=0, description="steps of linear warm-up after each merge (ReLoRA, section 3: 50 to 100)"
    )


def merges_after(config: BaseModel, step: int) -> bool:
    """Whether the factors are merged after optimizer step `step` (from 1)."""
    return isinstance(config, RestartConfig) and config.merge_gap > 0 and step % config.merge_gap == 0


def rewarm_factor(config: BaseModel, step: int) -> float:
    """Return the factor on the learning rate of optimizer step `step` (from 1): below 1 only soon after a merge."""
    if not isinstance(config, RestartConfig) or not 0 < config.merge_gap < step:
        return 1.0
    return min(1.0, ((step - 1) % config.merge_gap + 1) / (config.rewarm_steps + 1))


C = TypeVar("C", bound=MethodConfig)


@dataclass(frozen=True)
class Placement:
    """Where a method works: the same for every method of a comparison.

    Attributes:
        targets: full names of the linear layers it may change.
        trained: full names of the other parameters that are trained with plain AdamW by parameter-efficient methods
            too (the task's head; in pre-training also embeddings and norms).
    """

    targets: tuple[str, ...]
    trained: tuple[str, ...]


@dataclass(frozen=True)
class AdamSettings:
    """The inner AdamW that every method shares.

    Attributes:
        rest_learning_rate: of `Placement.trained`, what every method trains alike; None: the same.
        state_bits: 32 (fp32 moments) or 8 (bitsandbytes blockwise).
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    state_bits: int = 32
    rest_learning_rate: float | None = None


@dataclass(frozen=True)
class LayerRanks:
    """Which ranks a method uses in one layer; None where it has no such rank."""

    rank: int | None
    projection_rank: int | None


def ranks_of(shape: tuple[int, int], config: MethodConfig) -> LayerRanks:
    """Return the ranks that the settings name."""
    return LayerRanks(getattr(config, "rank", None), getattr(config, "projection_rank", None))


@dataclass(frozen=True)
class Rates:
    """Learning rates of a method in one kind of work: the usual one, and the range that a search goes over.

    Attributes:
        source: where the usual one stands, and how the range was chosen.

    Raises:
        ValueError: not 0 < low <= usual <= high.
    """

    usual: float
    low: float
    high: float
    source: str

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.usual <= self.high:
            raise ValueError(
                f"rates: low {self.low:g}, usual {self.usual:g}, high {self.high:g}: must be 0 < low <= usual <= high"
            )

    @classmethod
    def around(cls, usual: float, source: str) -> Rates:
        """Return a range of a decade to either side, as wide for every method."""
        return cls(usual, usual / 10, usual * 10, f"{source}; range: a decade to either side")


REST_RATES: Mapping[Work, Rates] = {
    "fine-tuning": Rates.around(1e-3, "own choice: what a head that starts at random takes, LoRA's middle doubled"),
    "pre-training": Rates.around(
        1e-2,
        "own choice: ten times full training's of the matrices, since under Adam only theirs falls with a layer's "
        "width (arXiv 2203.03466, table 3)",
    ),
}
"""Of what every method trains alike (`Placement.trained`): one range for all methods."""


@dataclass(frozen=True)
class Kept:
    """What an optimizer keeps for a parameter: one tensor, or Adam's two moments of a gradient of this shape.

    Attributes:
        shape: its sizes.
        moments: whether it is Adam's two moments, in the width of the state that a run asks for.
        bits: a width of its own; None: for moments the run's, for a tensor that of the parameter.
        high: in fp32 at least, whatever the parameter's precision.
        basis: whether gradients are projected on it.
    """

    shape: tuple[int, ...]
    moments: bool = False
    bits: int | None = None
    high: bool = False
    basis: bool = False

    @property
    def values(self) -> int:
        """Numbers it holds."""
        return math.prod(self.shape) * (2 if self.moments else 1)

    def bytes(self, state_bits: int, dtype: torch.dtype) -> int:
        """Return its bytes beside a parameter of `dtype`, in a run with state of `state_bits`."""
        kind = torch.promote_types(dtype, torch.float32) if self.high else dtype
        if self.moments:
            return optimizer_state_bytes(self.shape, None, "small", self.bits or state_bits, kind)
        return self.values * kind.itemsize if self.bits is None else -(-self.values * self.bits // 8)


@dataclass(frozen=True)
class Part:
    """One tensor that stands in the model for a target weight once the method is attached.

    Attributes:
        name: as in the method's formula.
        shape: its sizes.
        trained: whether it has a gradient and optimizer state.
        added: whether the method brought it, rather than the model.
        projection_rank, side: how its gradient is projected; None where it is not.
        high: kept in fp32 at least, whatever the model's precision.
        buffer: no parameter.
        quantised: kept as bytes (a value of 8 bits, or two of 4), whatever the model's precision.
        kept: what the optimizer keeps for it; None: Adam's two moments, on the projected gradient where it is
            projected, and the bases.
    """

    name: str
    shape: tuple[int, ...]
    trained: bool
    added: bool = True
    projection_rank: int | None = None
    side: Literal["small", "large", "both"] = "small"
    high: bool = False
    buffer: bool = False
    quantised: bool = False
    kept: tuple[Kept, ...] | None = None

    @property
    def values(self) -> int:
        """Numbers it holds."""
        return math.prod(self.shape)

    @property
    def state(self) -> tuple[Kept, ...]:
        """What the optimizer keeps for it; nothing if it is not trained."""
        if not self.trained:
            return ()
        if self.kept is not None:
            return self.kept
        rank = self.projection_rank
        if rank is None:
            return (Kept(self.shape, moments=True, high=self.high),)
        sides = zip(self.shape, projected_sides(self.shape, self.side), strict=True)
        bases = [Kept((length, rank), high=True, basis=True) for length, spanned in sides if spanned]
        return (Kept(projected_shape(self.shape, rank, self.side), moments=True, high=True), *bases)

    @property
    def moment_values(self) -> int:
        """Numbers in its state but for the bases: Adam's two moments, or what stands in their place."""
        return sum(each.values for each in self.state if not each.basis)

    @property
    def basis_values(self) -> int:
        """Numbers in the bases that its gradient is projected on: M P, N P, or their sum, of an M x N matrix."""
        return sum(each.values for each in self.state if each.basis)

    def state_bytes(self, state_bits: int, dtype: torch.dtype = torch.float32, bases: bool = True) -> int:
        """Return the bytes of its optimizer state in a model of `dtype`, bases included unless told otherwise."""
        return sum(each.bytes(state_bits, dtype) for each in self.state if bases or not each.basis)


def nothing_kept(model: nn.Module, placement: Placement, config: MethodConfig) -> Mapping[str, tuple[Kept, ...]]:
    """Return `Method.rest_kept` of an optimizer without state, such as plain gradient descent: nothing for anything."""
    return {name: () for name, _ in model.named_parameters()}


@dataclass(frozen=True)
class Method(Generic[C]):
    """One training method.

    Attributes:
        name: as typed on the command line.
        title: as printed in tables.
        arxiv: identifier of the paper, or None.
        config_type: its settings.
        configure: rank -> its settings in a comparison at that rank (the factors' rank for adapters, the projection
            rank where only gradients are projected).
        attach: (model, placement, config) -> None. Changes the model in place and sets requires_grad everywhere.
            Raises ValueError for settings that do not fit a layer, naming layer, value and nearest allowed value.
        optimizer: (model, placement, adam, config) -> Optimizer over exactly the trainable parameters, the rest at
            `adam.learning_rate`; `make_optimizer` sets the rest's apart. One that keeps bases is a `Refreshing`; one
            with an update inside backward of its own an `UpdatesInBackward`.
        merge: (model) -> model without any trace of the method: ordinary nn.Linear layers again.
        layer_parts: ((O, I), config) -> the tensors that stand for one target weight: what the memory formulas of
            weights, gradients, state, bases and adapters are made from, in any precision.
        ranks: ((O, I), config) -> LayerRanks, where those are not the settings of that name.
        rest_kept: (model, placement, config) -> name of a parameter outside the target weights -> what the optimizer
            keeps for it, where that is not Adam's two moments.
        widths: bits of the state that a run may ask for.
        from_weight: whether its factors are taken from the weight rather than drawn: the same for every seed, and a
            start that is the base function up to rounding.
        saves_state: whether its optimizer state must be smaller than dense AdamW's (the engagement check).
        restart: (model, optimizer, generator) -> None. Merges the factors into the weights and begins them anew, with
            no moments; None where the method has no factors. Its config is a `RestartConfig`.
        order: place among the rows of tables; without one it comes last.
        slot: colour and marker kept for it in figures; None: the next free ones.
        yardstick: whether all others are measured against it.
        control: whether it is no contender, but shows what is reached without training a matrix.
        bases: whether it keeps bases that gradients are projected on.
        factors: whether it trains factors beside a frozen weight.
        drawn: whether gradients are projected on what is drawn at a rank, with no basis to keep.
        rates: its learning rates by kind of work, for profiles that give none.
        variants: settings that the memory lab shows as rows of their own, by what sets them apart; "": itself.
        settles: whether a first step finds out what later ones keep for backward.
        default: whether a comparison that names no methods has it; others run where they are named, or by "all".
        pack_rate: learning rate at which it trains the tiny networks of the capability checks; None: AdamW's.
    """

    name: str
    title: str
    arxiv: str | None
    config_type: type[C]
    configure: Callable[[int], C]
    attach: Callable[[nn.Module, Placement, C], None]
    optimizer: Callable[[nn.Module, Placement, AdamSettings, C], Optimizer]
    merge: Callable[[nn.Module], nn.Module]
    layer_parts: Callable[[tuple[int, int], C], tuple[Part, ...]]
    saves_state: bool
    ranks: Callable[[tuple[int, int], C], LayerRanks] = ranks_of
    rest_kept: Callable[[nn.Module, Placement, C], Mapping[str, tuple[Kept, ...]]] = lambda model, placement, config: {}
    widths: tuple[int, ...] = (32, 8)
    from_weight: bool = False
    restart: Callable[[nn.Module, Optimizer, torch.Generator], None] | None = None
    order: int = 1000
    slot: int | None = None
    yardstick: bool = False
    control: bool = False
    bases: bool = False
    factors: bool = False
    drawn: bool = False
    rates: Mapping[Work, Rates] = field(default_factory=dict, hash=False)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}}, hash=False)
    settles: bool = False
    default: bool = False
    pack_rate: float | None = None

    def layer_state_bytes(self, shape: tuple[int, int], config: C, state_bits: int) -> int:
        """Return the bytes of optimizer state, bases included, that one target weight of an fp32 model costs."""
        return sum(part.state_bytes(state_bits) for part in self.layer_parts(shape, config))

    def trains_layers(self, shape: tuple[int, int], config: C) -> bool:
        """Whether anything that stands for a target weight is trained."""
        return any(part.trained for part in self.layer_parts(shape, config))

    def check_width(self, state_bits: int) -> None:
        """Raise ValueError for a width of the state that the method does not have."""
        if state_bits not in self.widths:
            nearest = min(self.widths, key=lambda width: abs(width - state_bits))
            known = " or ".join(map(str, self.widths))
            raise ValueError(f"state_bits {state_bits}: {self.name} has {known} (nearest allowed value: {nearest})")

    def make_optimizer(self, model: nn.Module, placement: Placement, adam: AdamSettings, config: C) -> Optimizer:
        """Return the optimizer of a run: the method's, with the rest at its own learning rate.

        Raises:
            ValueError: a width of the state that the method does not have.
            RuntimeError: it does not hold exactly the trainable parameters, each once.
        """
        self.check_width(adam.state_bits)
        optimizer = self.optimizer(model, placement, adam, config)
        check_optimizer_covers(model, optimizer)
        if adam.rest_learning_rate not in (None, adam.learning_rate):
            set_rest_apart(model, placement, optimizer, adam.rest_learning_rate)
        return optimizer


@runtime_checkable
class Refreshing(Protocol):
    """An optimizer that fits new bases every `refresh_gap` steps, as `gnlorp.GradNormLoRPAdamW` does.

    Attributes:
        last_refreshed: whether its last step fitted one.
        refresh_gap: steps between new bases; None where nothing is projected, or every step fits one.
        set_refresh_gap: gap -> whether there is a basis with a gap to set; counts from the next step on.
    """

    last_refreshed: bool

    @property
    def refresh_gap(self) -> int | None: ...

    def set_refresh_gap(self, gap: int) -> bool: ...


@runtime_checkable
class UpdatesInBackward(Protocol):
    """An optimizer that can step each parameter inside backward by itself; its `step` then closes the step.

    `per_layer` takes the backward passes of a step; `last_gradient_norm` is None where it never had whole gradients.
    """

    skipped_steps: int
    last_gradient_norm: float | None

    @property
    def supports_per_layer(self) -> bool: ...

    def per_layer(self, enable: bool = True, *, accumulation: int = 1) -> None: ...

    def step(self) -> Any: ...


def set_refresh_gap(optimizer: Optimizer, gap: int) -> bool:
    """Let bases be fitted every `gap` steps; return whether the optimizer has any."""
    return isinstance(optimizer, Refreshing) and optimizer.set_refresh_gap(gap)


def refreshed(optimizer: Optimizer) -> bool:
    """Whether the optimizer's last step fitted a basis."""
    return isinstance(optimizer, Refreshing) and optimizer.last_refreshed


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name, each once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def train_everything(model: nn.Module, placement: Placement, config: MethodConfig) -> None:
    """Make every parameter trainable: the `attach` of a method that changes nothing in the model."""
    model.requires_grad_(True)


def freeze_except(model: nn.Module, names: Sequence[str]) -> None:
    """Set requires_grad on exactly the named parameters.

    Raises:
        ValueError: a name is not a parameter of the model.
    """
    known = dict(model.named_parameters())
    for name in names:
        if name not in known:
            raise ValueError(f"no parameter is called {name!r} in {type(model).__name__}")
    chosen = set(names)
    for name, parameter in known.items():
        parameter.requires_grad_(name in chosen)


def check_rank(rank: int, layers: dict[str, tuple[int, int]], what: str = "rank") -> None:
    """Raise ValueError if `rank` is below 1 or above a layer's smaller side, naming the nearest allowed value."""
    if rank < 1:
        raise ValueError(f"{what} {rank}: must be at least 1 (nearest allowed value: 1)")
    name, shape = min(layers.items(), key=lambda item: min(item[1]))
    if rank > min(shape):
        raise ValueError(
            f"{what} {rank}: larger than layer {name} of shape {shape[0]}x{shape[1]} allows "
            f"(nearest allowed value: {min(shape)})"
        )


def set_rest_apart(model: nn.Module, placement: Placement, optimizer: Optimizer, learning_rate: float) -> None:
    """Give `placement.trained` groups of its own at `learning_rate`, every other option of its group as it was."""
    named = dict(model.named_parameters())
    rest = {id(named[name]) for name in placement.trained}
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) not in rest]
        moved = [parameter for parameter in group["params"] if id(parameter) in rest]
        if not own:
            group["lr"] = learning_rate
        elif moved:
            group["params"] = own
            optimizer.add_param_group({**group, "params": moved, "lr": learning_rate})


def check_optimizer_covers(model: nn.Module, optimizer: Optimizer) -> None:
    """Raise RuntimeError unless the optimizer holds exactly the trainable parameters of the model, each once."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    identities = {id(parameter) for parameter in held}
    if len(identities) != len(held):
        raise RuntimeError("the optimizer holds a parameter twice")
    names = {id(parameter): name for name, parameter in trainable(model).items()}
    missing = sorted(name for identity, name in names.items() if identity not in identities)
    if missing:
        raise RuntimeError(f"the optimizer does not hold {len(missing)} trainable parameters: {', '.join(missing[:3])}")
    if len(identities) != len(names):
        raise RuntimeError(f"the optimizer holds {len(identities) - len(names)} parameters that are not trainable")
