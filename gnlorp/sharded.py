"""The optimizer's step on weights that are sharded (FSDP2's `fully_shard`: DTensor), each process on its own shard.

A basis spans one side of a matrix. Sharded along the other one, R = G Q, Adam's moments and W <- W - N Q^T are products
of a shard alone; only norms, and at a refresh the small Gram matrix G^T G, are summed over the processes:

    shard i of G:  R_i = G_i Q,   N_i = Adam(R_i),   W_i <- W_i - lr * scale * N_i Q^T,   G^T G = sum_i G_i^T G_i

Sharded along the side that the basis spans (both sides are, or FSDP2 cannot divide the free one), R = sum_i G_i Q_i is
summed, so that moments are whole on every process, and a refresh gathers one gradient at a time. Bases are shared out
by rows whichever it is. A refresh works on as many weights at once as there are processes, each process on one.

State, of an M x N weight on D processes, ceil for what does not divide: see `local_state_layout`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from gnlorp import base_weight, update
from gnlorp.checks import is_sharded, needed_layout
from gnlorp.moments import Layout, State, carry_moments_, state_layout
from gnlorp.projection import Bases, down, fit, oriented, projected_sides

BASES = {"basis_left": 0, "basis_right": 1}
"""Name of a basis in the state -> the side of the weight that it spans."""

# The second name is that of torch below 2.13.
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class Share:
    """How a weight is shared out: its dimension (None: whole on every process), and the processes."""

    mesh: DeviceMesh
    dim: int | None

    @property
    def group(self) -> dist.ProcessGroup:
        """The processes."""
        return self.mesh.get_group()

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.mesh.size()

    @property
    def rank(self) -> int:
        """This process among them."""
        return self.mesh.get_local_rank()

    def own(self, length: int) -> slice:
        """Return this process's part of a dimension of this length."""
        return part(length, self.size, self.rank)


def part(length: int, processes: int, rank: int) -> slice:
    """Return the part of a dimension that a process has, as `torch.chunk` and DTensor divide it: the last may be less,
    or nothing."""
    step = -(-length // processes)
    return slice(min(length, rank * step), min(length, (rank + 1) * step))


def share_of(weight: DTensor) -> Share:
    """Return how a weight is shared out, `gnlorp.checks` having seen to it that it is in one dimension at most."""
    (placement,) = weight.placements
    return Share(weight.device_mesh, placement.dim if isinstance(placement, Shard) else None)


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard, sharing its memory; a whole tensor as it is."""
    if isinstance(tensor, DTensor):
        with torch.no_grad():
            return tensor.to_local()
    return tensor


def shard_dim(shape: Sequence[int], projection_rank: int | None, side: Any, processes: int) -> int:
    """Return the dimension to shard a weight along: the one that no basis spans, else 0.

    FSDP2 divides dimension 1 into equal parts only; dimension 0 takes any length.
    """
    if projection_rank is None or len(shape) != 2:
        return 0
    left, right = projected_sides(shape, side)
    return 1 if left and not right and shape[1] % processes == 0 else 0


def placement(groups: Iterable[Mapping[str, Any]], processes: int) -> Callable[[Tensor], Shard]:
    """Return `shard_placement_fn` for `fully_shard`: every weight along the side that its basis does not span.

    `groups` are an optimizer's, of the model before it is sharded: such as `gnlorp.param_groups` returns, or
    `param_groups` of an optimizer that is made anew afterwards, since `fully_shard` puts other parameters in place.
    """
    dims = {
        id(weight): shard_dim(weight.shape, group.get("projection_rank"), group.get("side", "small"), processes)
        for group in groups
        for weight in group["params"]
    }
    return lambda weight: Shard(dims.get(id(weight), 0))


def local_state_layout(
    shape: Sequence[int],
    dtype: torch.dtype,
    projection_rank: int | None,
    side: Any,
    processes: int,
    rank: int = 0,
    dim: int | None = None,
) -> Layout:
    """Return name -> (shape, dtype) of one weight's optimizer state on one process, 32 bit, sharded along `dim` (None:
    as `shard_dim` says); `gnlorp.moments.layout_bytes` adds it up.

    With b bytes a value, c = ceil(n / D) of the shared dimension, M >= N and the basis on the small side, that is

        plain: 2 b c N      projected, M shared: b (2 c P + ceil(N / D) P)      N shared: b (2 M P + ceil(N / D) P)
    """
    chosen = shard_dim(shape, projection_rank, side, processes) if dim is None else dim
    layout = state_layout(shape, dtype, projection_rank, side, 32)
    dims = _dims(layout, shape, chosen, projection_rank, side)
    return {name: (local_shape(lengths, dims[name], processes, rank), kind) for name, (lengths, kind) in layout.items()}


def gradient_norms(grads: Sequence[Tensor | None]) -> list[float]:
    """Return the norm of each whole gradient, with one sum over the processes; NaN or Inf where it is not finite.

    Raises: ValueError for a sparse gradient.
    """
    dense = [grad for grad in grads if grad is not None]
    found = update.gradient_norms([local(grad) for grad in dense])
    shared: dict[DeviceMesh, list[int]] = {}
    for index, grad in enumerate(dense):
        if isinstance(grad, DTensor) and share_of(grad).dim is not None:
            shared.setdefault(grad.device_mesh, []).append(index)
    for mesh, indices in shared.items():
        squares = torch.tensor([found[i] * found[i] for i in indices], dtype=torch.float64, device=mesh.device_type)
        dist.all_reduce(squares, group=mesh.get_group())
        for index, square in zip(indices, squares.tolist(), strict=True):
            found[index] = math.sqrt(square) if square >= 0 else square
    return found


def largest_value(grad: DTensor) -> float:
    """Return the largest magnitude in a whole gradient, the same on every process."""
    own = local(grad)
    found = torch.linalg.vector_norm(own, math.inf) if own.numel() else own.new_zeros(())
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=share_of(grad).group)
    return float(found)


def begin_(weight: DTensor, state: State, group: Any) -> None:
    """Make a weight's state where it has none: zeros at step 0, each tensor shared out as its parts say."""
    if state:
        return
    share = share_of(weight)
    layout = needed_layout(weight, group)
    dims = _dims(layout, weight.shape, share.dim, group["projection_rank"], group["side"])
    state["step"] = 0
    for name, (lengths, kind) in layout.items():
        dim = dims[name]
        shard = torch.zeros(local_shape(lengths, dim, share.size, share.rank), dtype=kind, device=local(weight).device)
        state[name] = shard if dim is None else shared_out(shard, lengths, share, dim)


def shared_out(shard: Tensor, shape: Sequence[int], share: Share, dim: int) -> DTensor:
    """Return the tensor of this whole shape of which `shard` is this process's part along `dim`."""
    strides = torch.empty(tuple(shape), device="meta").stride()
    return DTensor.from_local(shard, share.mesh, [Shard(dim)], run_check=False, shape=torch.Size(shape), stride=strides)


def update_plain_(weights: Sequence[DTensor], grads: Sequence[Tensor], states: Sequence[State], group: Any) -> None:
    """One step of plain AdamW on every shard in place."""
    for weight, state in zip(weights, states, strict=True):
        begin_(weight, state, group)
    views = [_view(state) for state in states]
    update.update_plain_([local(w) for w in weights], [local(g) for g in grads], views, group)
    _keep_steps(states, views)


def update_projected_(
    weights: Sequence[DTensor], grads: Sequence[Tensor], states: Sequence[State], norms: Sequence[float], group: Any
) -> bool:
    """`gnlorp.update.update_projected_` on shards; return whether a basis was fitted."""
    decay = 1.0 - float(group["lr"]) * group["weight_decay"]
    live = []
    for index, (weight, state) in enumerate(zip(weights, states, strict=True)):
        begin_(weight, state, group)
        if state["step"] or norms[index] > 0:
            live.append(index)
        elif decay != 1.0:
            local(weight).mul_(decay)
    due = [i for i in live if norms[i] > 0 and states[i]["step"] % group["refresh_gap"] == 0]
    refresh_(
        [weights[i] for i in due], [grads[i] for i in due], [norms[i] for i in due], [states[i] for i in due], group
    )
    for chunk in update.chunks(live, update.projected_sizes(weights, group), update.CHUNK_VALUES):
        some = [weights[i] for i in chunk]
        bases = [_bases(weights[i], states[i]) for i in chunk]
        projected = [_down(weights[i], grads[i], each) for i, each in zip(chunk, bases, strict=True)]
        _apply_(some, projected, [states[i] for i in chunk], bases, decay, group)
    return bool(due)


def accumulate_projected_(
    weight: DTensor, grad: Tensor, state: State, norm: float, total: Tensor | None, group: Any
) -> tuple[Tensor | None, bool]:
    """`gnlorp.update.accumulate_projected_` on a shard."""
    begin_(weight, state, group)
    due = total is None and norm > 0 and state["step"] % group["refresh_gap"] == 0
    if due:
        refresh_([weight], [grad], [norm], [state], group)
    if not due and total is None and (norm == 0 or not state["step"]):
        return None, False
    projected = _down(weight, grad, _bases(weight, state))
    return (projected if total is None else total.add_(projected)), due


def step_projected_(weight: DTensor, projected: Tensor | None, state: State, group: Any) -> None:
    """`gnlorp.update.step_projected_` on a shard."""
    decay = 1.0 - float(group["lr"]) * group["weight_decay"]
    begin_(weight, state, group)
    if projected is None and not state["step"]:
        if decay != 1.0:
            local(weight).mul_(decay)
        return
    low = torch.zeros_like(local(state["exp_avg"])) if projected is None else projected
    _apply_([weight], [low], [state], [_bases(weight, state)], decay, group)


def sum_norm(weight: DTensor, total: Tensor) -> float:
    """Return a number that is finite on every process alike only where the sum of projected gradients is."""
    found = torch.linalg.vector_norm(total).reshape(1)
    dist.all_reduce(found, group=share_of(weight).group)
    return float(found)


def refresh_(
    weights: Sequence[DTensor], grads: Sequence[Tensor], norms: Sequence[float], states: Sequence[State], group: Any
) -> None:
    """Fit new bases to the whole gradients and carry the moments over, in rounds of as many weights as processes."""
    if not weights:
        return
    share = share_of(weights[0])
    moderated = [update.moderate(local(grad), norm) for grad, norm in zip(grads, norms, strict=True)]
    for start in range(0, len(weights), share.size):
        chunk = slice(start, start + share.size)
        _refresh_round(weights[chunk], moderated[chunk], states[chunk], share, group)


def _refresh_round(
    weights: Sequence[DTensor], grads: Sequence[Tensor], states: Sequence[State], share: Share, group: Any
) -> None:
    """Give each process one gradient, or its Gram matrix, to fit bases to; then tell all of them the bases."""
    old = [
        _whole_bases(weight, state) if state["step"] else None for weight, state in zip(weights, states, strict=True)
    ]
    fitted = None
    for place, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
        found = _collected(weight, grad, place, group)
        if place == share.rank:
            fitted = _fitted(weight, found, old[place], group)
        del found
    for place, (weight, state) in enumerate(zip(weights, states, strict=True)):
        new = _told(weight, fitted if place == share.rank else None, place, group)
        before = old[place]
        if before is not None:
            view = _view(state)
            carry_moments_(view, before, new, group["moments"])
            state["step"] = view["step"]
        for name, side in BASES.items():
            basis = new[side]
            if basis is not None:
                held = state[name]
                local(held).copy_(basis if not is_sharded(held) else basis[share.own(len(basis))])


def _by_gram(weight: DTensor, group: Any) -> bool:
    """Whether the Gram matrix on the smaller side is all that bases need, and a sum over shards."""
    free = share_of(weight).dim is not None and not _spans(weight.shape, share_of(weight).dim, group)
    return free and group["side"] == "small" and group["basis"] == "exact"


def _collected(weight: DTensor, grad: Tensor, place: int, group: Any) -> Tensor:
    """Return on process `place` what bases are fitted to; on the others it means nothing."""
    share = share_of(weight)
    if _by_gram(weight, group):
        work = grad.to(torch.promote_types(grad.dtype, torch.float32))
        gram = work.T @ work if weight.shape[0] >= weight.shape[1] else work @ work.T
        dist.reduce(gram, dst=dist.get_global_rank(share.group, place), group=share.group)
        return gram
    return grad if share.dim is None else gathered(grad, share, share.dim, weight.shape[share.dim])


def _fitted(weight: DTensor, found: Tensor, old: Bases | None, group: Any) -> Bases:
    rank = group["projection_rank"]
    if not _by_gram(weight, group):
        return fit([found], [old], rank, group["side"], group["basis"])[0]
    # A stack of one, as the eigenproblems of whole gradients are solved.
    basis = torch.linalg.eigh(found[None]).eigenvectors[0, :, -rank:].flip(1)
    past = old or Bases(None, None)
    tall = weight.shape[0] >= weight.shape[1]
    return Bases(None, oriented(basis, past.right)) if tall else Bases(oriented(basis, past.left), None)


def _told(weight: DTensor, fitted: Bases | None, place: int, group: Any) -> Bases:
    """Return the bases that process `place` fitted, on every process."""
    share, kind = share_of(weight), torch.promote_types(weight.dtype, torch.float32)
    found: list[Tensor | None] = [None, None]
    for side, spanned in enumerate(projected_sides(weight.shape, group["side"])):
        if not spanned:
            continue
        basis = None if fitted is None else fitted[side]
        if basis is None:
            basis = torch.empty(weight.shape[side], group["projection_rank"], dtype=kind, device=local(weight).device)
        dist.broadcast(basis, src=dist.get_global_rank(share.group, place), group=share.group)
        found[side] = basis
    return Bases(*found)


def gathered(shard: Tensor, share: Share, dim: int, length: int) -> Tensor:
    """Return the whole tensor of which each process holds a part along `dim`, `length` long."""
    rows = shard.movedim(dim, 0)
    step = -(-length // share.size)
    sent = rows.contiguous()
    if len(rows) < step:
        sent = rows.new_zeros(step, *rows.shape[1:])
        sent[: len(rows)] = rows
    found = sent.new_empty(step * share.size, *rows.shape[1:])
    _all_gather(found, sent, group=share.group)
    return found[:length].movedim(0, dim)


def row_square_norms(weight: DTensor, scale: Tensor | None, inputs: int) -> Tensor:
    """Return `gnlorp.base_weight.row_square_norms` of a whole weight that is sharded, (O,)."""
    share, shard = share_of(weight), local(weight)
    if share.dim == 1:
        assert scale is None
        square = base_weight.row_square_norms(shard)
        dist.all_reduce(square, group=share.group)
        return square
    rows = slice(None) if share.dim is None else share.own(weight.shape[0])
    square = base_weight.row_square_norms(shard, None if scale is None else scale[rows], inputs)
    return square if share.dim is None else gathered(square, share, 0, weight.shape[0])


def _apply_(
    weights: Sequence[DTensor],
    projected: Sequence[Tensor],
    states: Sequence[State],
    bases: Sequence[Bases],
    decay: float,
    group: Any,
) -> None:
    views = [{**_view(state), **_named(each)} for state, each in zip(states, bases, strict=True)]
    update.apply_projected_([local(weight) for weight in weights], projected, views, decay, group)
    _keep_steps(states, views)


def _down(weight: DTensor, grad: Tensor, bases: Bases) -> Tensor:
    """Return this process's part of the projected gradient; the whole of it where the basis spans the shared side."""
    share = share_of(weight)
    low = down(local(grad), bases)
    if share.dim is not None and bases[share.dim] is not None:
        low = low.contiguous()
        dist.all_reduce(low, group=share.group)
    return low


def _bases(weight: DTensor, state: State) -> Bases:
    """Return the bases as a shard needs them: of the shared side its own rows, of the other one the whole."""
    dim = share_of(weight).dim
    sides = (_basis(weight, state, name, own=BASES[name] == dim) for name in BASES)
    return Bases(*sides)


def _whole_bases(weight: DTensor, state: State) -> Bases:
    return Bases(*(_basis(weight, state, name, own=False) for name in BASES))


def _basis(weight: DTensor, state: State, name: str, own: bool) -> Tensor | None:
    held = state.get(name)
    if held is None or own or not is_sharded(held):
        return None if held is None else local(held)
    return gathered(local(held), share_of(weight), 0, weight.shape[BASES[name]])


def _named(bases: Bases) -> dict[str, Tensor]:
    return {name: basis for name in BASES if (basis := bases[BASES[name]]) is not None}


def _view(state: State) -> State:
    """Return the state of this process's shard: the same memory, whole bases left out."""
    return {name: local(value) if isinstance(value, Tensor) else value for name, value in state.items()}


def _keep_steps(states: Sequence[State], views: Sequence[State]) -> None:
    for state, view in zip(states, views, strict=True):
        state["step"] = view["step"]


def _spans(shape: Sequence[int], dim: int | None, group: Any) -> bool:
    """Whether a basis spans a dimension of a weight."""
    return dim is not None and projected_sides(shape, group["side"])[dim]


def _dims(
    layout: Mapping[str, Any], shape: Sequence[int], dim: int | None, projection_rank: int | None, side: Any
) -> dict[str, int | None]:
    """Return name -> the dimension along which a tensor of the state is shared out; None: whole on every process."""
    whole = dim is None or (projection_rank is not None and projected_sides(shape, side)[dim])
    return {name: (None if dim is None else 0) if name in BASES else (None if whole else dim) for name in layout}


def local_shape(lengths: Sequence[int], dim: int | None, processes: int, rank: int = 0) -> tuple[int, ...]:
    """Return the shape of a process's part of a tensor that is shared out along `dim`; None: of a whole one."""
    if dim is None:
        return tuple(lengths)
    own = part(lengths[dim], processes, rank)
    return (*lengths[:dim], own.stop - own.start, *lengths[dim + 1 :])
