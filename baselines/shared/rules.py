"""What the projection family shares: an optimizer with another rule for the target weights, and pieces of such rules.

M rows, N columns of a weight, P projection rank. The basis spans the smaller side, as in GaLore: the projected gradient
has one row or column left for each unit of the larger side, called a channel here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, Kept, MethodConfig, Part, Placement
from baselines.shared.projected import Projection, check_projection, split
from baselines.shared.targets import shapes
from gnlorp import GradNormLoRPAdamW
from gnlorp.checks import OPTIONS, check_names
from gnlorp.moments import Layout, State
from gnlorp.projection import Bases, projected_shape, projected_sides
from gnlorp.update import MODERATE, usable

SIDE: Literal["small"] = "small"
LARGEST = 1e15
"""Norm of a gradient from which a rule's step is skipped: its square leaves 1e8 of float32's range."""


class SmallSide(MethodConfig):
    """Settings of a projection of dense weights' gradients on their smaller side."""

    @property
    def side(self) -> Literal["small"]:
        """The side that the projection spans."""
        return SIDE


class ProjectionConfig(SmallSide):
    """Settings of a projection at a rank, anew every so often."""

    projection_rank: int = Field(default=8, description="rank of the gradient's projection (GaLore's GLUE: 4, 8)")
    refresh_gap: int = Field(default=200, ge=1, description="steps between new projections (paper: 200)")


class RuleAdamW(GradNormLoRPAdamW):
    """`gnlorp.GradNormLoRPAdamW` with another rule for the projected parameters; plain ones get AdamW as there.

    State, resume, skipped steps and updates inside backward are its own. A subclass says which tensors a state holds
    (`layout`) and does one step on one weight (`rule`). Steps are skipped, too, where a projected gradient's norm
    reaches `LARGEST`: rules multiply a gradient by itself, and need room for sums and factors of that.

    Attributes:
        own: its options beside those of `GradNormLoRPAdamW`, at their defaults.
        fits: whether it fits a basis every `refresh_gap` steps, which can then be set.
    """

    own: ClassVar[Mapping[str, Any]] = {}
    fits: ClassVar[bool] = True
    sums_projected: ClassVar[bool] = False
    takes_shards: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.options = (*OPTIONS, *cls.own)

    def __init__(self, params: Sequence[Mapping[str, Any]], **options: Any) -> None:
        own = {name: options.pop(name, default) for name, default in self.own.items()}
        super().__init__([{**own, **group} for group in params], **options)
        self.defaults.update(own)

    @staticmethod
    def layout(shape: Sequence[int], dtype: torch.dtype, projection_rank: int, state_bits: int) -> Layout:
        """Return name -> (shape, dtype) of the tensors in the state of a projected weight of this dtype."""
        raise NotImplementedError("every rule has a state of its own: its file says which")

    def rule(self, weight: Tensor, grad: Tensor, state: State, norm: float, group: dict[str, Any]) -> bool:
        """Do one step on one weight in place, its state whole; return whether a basis was fitted."""
        raise NotImplementedError("every rule has a step of its own: its file says which")

    def begin(self, weight: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Return what a state holds at the start beside tensors of zero."""
        return {"step": 0}

    @property
    def refresh_gap(self) -> int | None:
        """Steps between new bases; None where there are none, or new ones at every step."""
        return super().refresh_gap if self.fits else None

    def set_refresh_gap(self, gap: int) -> bool:
        """Fit new bases every `gap` steps from now on; return False where that cannot be set."""
        return self.fits and super().set_refresh_gap(gap)

    def _usable(self, norms: Sequence[float], weights: Sequence[Tensor], group: dict[str, Any]) -> bool:
        if group["projection_rank"] is not None:
            return all(norm < LARGEST for norm in norms)
        return usable(norms, weights, group)

    def _layout(self, weight: Tensor, group: dict[str, Any]) -> Layout:
        rank = group["projection_rank"]
        if rank is None:
            return super()._layout(weight, group)
        return self.layout(weight.shape, weight.dtype, rank, group["state_bits"])

    def _new_state(self, weight: Tensor, group: dict[str, Any]) -> State:
        state = super()._new_state(weight, group)
        return state if group["projection_rank"] is None else {**self.begin(weight, group), **state}

    def _check_state(self, given: Any) -> None:
        super()._check_state(given)
        # A relative with more options would be taken for this one.
        for saved in given["param_groups"]:
            check_names(saved, self.options)

    def _update(self, group: dict[str, Any], weights: list[Tensor], norms: list[float]) -> bool:
        if group["projection_rank"] is None:
            return super()._update(group, weights, norms)
        fitted = False
        for weight, norm in zip(weights, norms, strict=True):
            state, grad = self.state[weight], weight.grad
            assert grad is not None
            if not state:
                state.update(self._new_state(weight, group))
            if state["step"] or norm > 0:
                fitted |= self.rule(weight, grad, state, norm, group)
            else:
                # A gradient of exactly 0 says nothing yet: as in `gnlorp.update.update_projected_`.
                decay_(weight, group)
        return fitted


class DrawingAdamW(RuleAdamW):
    """A rule whose projection is drawn, not fitted: a pure function of the weight's seed and of the number of draws.

    A weight's seed is the optimizer's plus its place among the projected weights. The optimizer's is that which the
    process was last seeded with, unless given, so that runs of different seeds draw differently (and processes of one
    run, which must be seeded alike, draw the same).
    """

    own: ClassVar[Mapping[str, Any]] = {"seed": None}
    fits: ClassVar[bool] = False

    def __init__(self, params: Sequence[Mapping[str, Any]], **options: Any) -> None:
        super().__init__(params, **{"seed": torch.initial_seed() % (1 << 62), **options})

    def begin(self, weight: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Return the counter and the weight's seed."""
        projected = (each for other in self._projected() for each in other["params"])
        return {"step": 0, "seed": group["seed"] + next(i for i, each in enumerate(projected) if each is weight)}


def generator_of(seed: int, draw: int, device: torch.device) -> torch.Generator:
    """Return the generator of one draw for one weight; draws of neighbouring seeds do not meet."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + draw) % (1 << 63))


def channel_norms(projected: Tensor, right: bool) -> Tensor:
    """Return the norm of each channel in at least float32: (M, 1) where the basis spans the columns, else (1, N)."""
    high = torch.promote_types(projected.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(projected, dim=1 if right else 0, keepdim=True, dtype=high)
    return norms


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return above / below, and 0 where nothing is below."""
    return torch.where(below > 0, above / below, 0.0)


def moderate_(product: Tensor) -> Tensor:
    """Scale a product of gradients in place where its own products might leave the range; return the factor, else 1."""
    size = torch.linalg.vector_norm(product, torch.inf)
    factor = torch.where(size > MODERATE[1], 1.0 / size, 1.0)
    product.mul_(factor)
    return factor


def limited(norm: Tensor, state: State, growth: float) -> Tensor:
    """Return the factor that keeps a norm from growing past `growth` times the last one, and remember the outcome.

    n <- min(n, growth * n_before): Fira's limiter (arXiv 2410.01623, equation 12), APOLLO's (2412.05270, equation 4).
    A norm of 0 is passed over, since nothing could grow from there again.
    """
    last: Tensor = state["last_norm"]
    bound = growth * last
    factor = torch.where((last > 0) & (norm > bound), bound / norm, 1.0)
    last.copy_(torch.where(norm > 0, norm * factor, last))
    return factor


def with_last_norm(layout: Layout, dtype: torch.dtype) -> Layout:
    """Return the layout with what the limiter remembers: one number."""
    return {**layout, "last_norm": ((), torch.promote_types(dtype, torch.float32))}


def add_scaled_(weight: Tensor, grad: Tensor, factors: Tensor, scale: float) -> None:
    """Add scale * factors * grad to the weight in place, with no tensor of its size."""
    weight.addcmul_(grad, factors.to(weight.dtype), value=scale)


def keep(group: Mapping[str, Any]) -> float:
    """Return what decoupled weight decay leaves of a weight."""
    return 1.0 - float(group["lr"]) * float(group["weight_decay"])


def decay_(weight: Tensor, group: Mapping[str, Any]) -> None:
    """Take decoupled weight decay off a weight in place."""
    if (kept := keep(group)) != 1.0:
        weight.mul_(kept)


def spans_columns(weight: Tensor) -> bool:
    """Whether the basis spans the columns (tall and square weights), rather than the rows."""
    return projected_sides(weight.shape, SIDE)[1]


def one_sided(basis: Tensor, right: bool) -> Bases:
    """Return bases of which one is there, in order in memory, as a resumed run finds it."""
    return Bases(None, basis.contiguous()) if right else Bases(basis.contiguous(), None)


def the_basis(bases: Bases) -> Tensor:
    """Return the one basis that is there."""
    basis = bases.right if bases.left is None else bases.left
    assert basis is not None
    return basis


def set_bases(state: State, bases: Bases) -> None:
    """Put bases into a state in place of the old ones."""
    state["basis_right" if bases.left is None else "basis_left"] = the_basis(bases)


def attach(model: nn.Module, placement: Placement, config: Projection) -> None:
    """Make every parameter trainable; nothing else changes in the model."""
    check_projection({f"layer {name}": shape for name, shape in shapes(model, placement.targets).items()}, config)
    model.requires_grad_(True)


def optimizer_of(rule: type[RuleAdamW], *names: str) -> Callable[..., Optimizer]:
    """Return a method's `optimizer`: `rule` on the targets, with these of its settings, and AdamW on all else."""

    def optimizer(model: nn.Module, placement: Placement, adam: AdamSettings, config: Projection) -> Optimizer:
        projected, plain = split(model, placement)
        groups: list[dict[str, Any]] = [{"params": projected, "projection_rank": config.projection_rank}]
        groups += [{"params": plain, "projection_rank": None}] if plain else []
        return rule(
            groups,
            lr=adam.learning_rate,
            betas=adam.betas,
            eps=adam.eps,
            weight_decay=adam.weight_decay,
            state_bits=adam.state_bits,
            side=config.side,
            **{name: getattr(config, name) for name in names},
        )

    return optimizer


def parts_of(*kept: Callable[[tuple[int, int], int], Kept]) -> Callable[..., tuple[Part, ...]]:
    """Return a method's `layer_parts`: the weight itself, with what is kept for it by its shape and rank."""

    def layer_parts(shape: tuple[int, int], config: Projection) -> tuple[Part, ...]:
        rank = config.projection_rank
        return (Part("weight", shape, True, False, rank, SIDE, kept=tuple(each(shape, rank) for each in kept)),)

    return layer_parts


def moments(shape: tuple[int, int], rank: int) -> Kept:
    """Adam's two moments of the projected gradient."""
    return Kept(projected_shape(shape, rank, SIDE), moments=True, high=True)


def basis(shape: tuple[int, int], rank: int) -> Kept:
    """A basis on the smaller side."""
    return Kept((min(shape), rank), high=True, basis=True)


def last_norm(shape: tuple[int, int], rank: int) -> Kept:
    """The one number of the limiter."""
    return Kept((), high=True)
