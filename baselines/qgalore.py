"""Q-GaLore: GaLore with a basis of four bits, fitted less often where it hardly turns (arXiv 2407.08296).

    R = down(G) with Q of 4 bits,  N = Adam(R),  W <- W - lr scale up(N)                         Zhang et al. 2024
    Q: top singular vectors of G, rounded to 16 steps between the smallest and largest of 256 values; anew every
    refresh_gap 2^k steps, k grown by one at a refresh where cos(q_1, q_1_old) averaged 0.4 over the last five

Bytes of state for an O x I weight: 8 * max(O, I) * P with 32-bit moments, and for the n = min(O, I) * P values of the
basis ceil(n / 2) + 8 * ceil(n / 256). Stated choices: every parameter outside the targets is trained with plain AdamW;
moments are 8-bit where the comparison's are (the paper: always); weights keep the model's precision (the paper: 8 bits
with stochastic rounding, another subject than gradients); moments are kept at a refresh; the angle is that of the
leading vector against the rounded old one, whose sign it is given first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from baselines.method import Kept, Method, Rates
from baselines.shared.rules import (
    SIDE,
    ProjectionConfig,
    RuleAdamW,
    attach,
    keep,
    moments,
    one_sided,
    optimizer_of,
    parts_of,
    spans_columns,
    the_basis,
)
from gnlorp.moments import Layout, State, adam_directions, moment_layout
from gnlorp.projection import Bases, add_up_, down, fit, projected_shape
from gnlorp.update import moderate

GROUP, LEVELS = 256, 15


class QgaloreConfig(ProjectionConfig):
    """GaLore's settings, and when a basis counts as hardly turned."""

    scale: float = Field(default=2.0, gt=0, description="factor on the projected update (GaLore's GLUE, rank 8: 2)")
    likeness: float = Field(default=0.4, gt=0, le=1, description="mean cosine from which the gap doubles (paper: 0.4)")
    window: int = Field(default=5, ge=1, description="refreshes over which the mean is taken (release: 5)")


class Packed(NamedTuple):
    """Values of four bits, two a byte, and for each 256 of them the smallest and the step, in float32."""

    codes: Tensor
    low: Tensor
    step: Tensor


class QgaloreAdamW(RuleAdamW):
    """AdamW on gradients projected on a basis of four bits."""

    own: ClassVar[Mapping[str, Any]] = {"likeness": 0.4, "window": 5}

    @staticmethod
    def layout(shape: Sequence[int], dtype: torch.dtype, projection_rank: int, state_bits: int) -> Layout:
        """Return the moments of the projected gradient, and the packed basis."""
        values = min(shape) * projection_rank
        groups = ((-(-values // GROUP),), torch.float32)
        high = torch.promote_types(dtype, torch.float32)
        return {
            **moment_layout(projected_shape(shape, projection_rank, SIDE), high, state_bits),
            "basis_codes": ((-(-values // 2),), torch.uint8),
            "basis_low": groups,
            "basis_step": groups,
        }

    def begin(self, weight: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Return counters of steps, of the step of the last fit and of doublings, and the last cosines."""
        return {"step": 0, "fitted": 0, "doublings": 0, "cosines": ()}

    def rule(self, weight: Tensor, grad: Tensor, state: State, norm: float, group: dict[str, Any]) -> bool:
        """Do one step on one weight."""
        old = unpacked_bases(weight, state, group["projection_rank"]) if state["step"] else None
        waited = state["step"] - state["fitted"] >= group["refresh_gap"] * 2 ** state["doublings"]
        due = norm > 0 and (old is None or waited)
        if due:
            (new,) = fit([moderate(grad, norm)], [old], group["projection_rank"], SIDE, "exact")
            if old is not None:
                watch(state, the_basis(new)[:, 0], the_basis(old)[:, 0], group)
            state["fitted"] = state["step"]
            for name, value in pack(the_basis(new))._asdict().items():
                state[f"basis_{name}"].copy_(value)
            old = unpacked_bases(weight, state, group["projection_rank"])
        assert old is not None
        low = down(grad, old)
        (update,) = adam_directions([low], [state], group)
        add_up_(weight, update, old, keep(group), float(group["lr"]) * group["scale"])
        return due


def watch(state: State, new: Tensor, old: Tensor, group: Mapping[str, Any]) -> None:
    """Note how the leading vector turned, and double the gap where it hardly did over the whole window."""
    cosine = float(torch.nn.functional.cosine_similarity(new, old, dim=0))
    state["cosines"] = (*state["cosines"], cosine)[-group["window"] :]
    if len(state["cosines"]) == group["window"] and sum(state["cosines"]) >= group["likeness"] * group["window"]:
        state["doublings"] += 1


def pack(values: Tensor) -> Packed:
    """Return values in four bits, each group of 256 between its smallest and largest."""
    flat = values.float().flatten()
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % GROUP), value=0.0).view(-1, GROUP)
    inside = torch.arange(padded.numel(), device=flat.device).view(-1, GROUP) < flat.numel()
    low = torch.where(inside, padded, torch.inf).amin(1)
    step = (torch.where(inside, padded, -torch.inf).amax(1) - low) / LEVELS
    codes = torch.where(step[:, None] > 0, (padded - low[:, None]) / step[:, None], 0.0)
    codes = codes.round_().clamp_(0, LEVELS).to(torch.uint8).flatten()[: flat.numel() + flat.numel() % 2]
    return Packed(codes[::2] | (codes[1::2] << 4), low, step)


def unpack(packed: Packed, count: int) -> Tensor:
    """Return the first `count` values, in float32."""
    codes = torch.stack([packed.codes & LEVELS, packed.codes >> 4], 1).flatten()[:count].float()
    return codes * packed.step.repeat_interleave(GROUP)[:count] + packed.low.repeat_interleave(GROUP)[:count]


def unpacked_bases(weight: Tensor, state: State, projection_rank: int) -> Bases:
    """Return the basis in a state as numbers of at least float32."""
    packed = Packed(*(state[f"basis_{name}"] for name in Packed._fields))
    values = unpack(packed, min(weight.shape) * projection_rank)
    high = torch.promote_types(weight.dtype, torch.float32)
    return one_sided(values.view(min(weight.shape), projection_rank).to(high), spans_columns(weight))


def codes(shape: tuple[int, int], rank: int) -> Kept:
    """The basis at four bits a value."""
    return Kept((min(shape) * rank,), bits=4, basis=True)


def groups(shape: tuple[int, int], rank: int) -> Kept:
    """A number for each group of values."""
    return Kept((-(-min(shape) * rank // GROUP),), high=True, basis=True)


METHOD = Method(
    name="qgalore",
    title="Q-GaLore",
    arxiv="2407.08296",
    config_type=QgaloreConfig,
    configure=lambda rank: QgaloreConfig(projection_rank=rank),
    attach=attach,
    optimizer=optimizer_of(QgaloreAdamW, "refresh_gap", "scale", "likeness", "window"),
    merge=lambda model: model,
    layer_parts=parts_of(moments, codes, groups, groups),
    saves_state=True,
    order=27,
    bases=True,
    rates={
        "fine-tuning": Rates.around(2e-5, "own choice: GaLore's"),
        "pre-training": Rates.around(1.5e-2, "release's C4 script for 60M, with scale 0.25"),
    },
)
