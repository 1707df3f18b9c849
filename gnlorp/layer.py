"""The weight-normalised low-rank linear layer, and how it is put into a model and folded out of it."""

from __future__ import annotations

import difflib
import fnmatch
import math
import weakref
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from gnlorp.base_weight import BaseWeight, accumulation_dtype, quantise, row_square_norms
from gnlorp.checks import is_sharded, whole
from gnlorp.dropout import draw_seed
from gnlorp.surgery import carry_hooks, guard_resize, not_scriptable, swap
from gnlorp.weight_norm import (
    Options,
    composed,
    norm_low_rank_linear,
    shared_cast,
    tracing,
    waiting,
)

NormGradient = Literal["full", "detached"]
Activations = Literal["fast", "least", "auto"]
BaseBits = Literal[8, 4]


class NormLowRankLinear(nn.Module):
    """A linear layer as magnitude times direction, the direction a frozen weight plus a low-rank product.

        V = W0 + (alpha / R) A B,   W' = diag(m / |V|_row) V,   y = x W'^T + b          arXiv 2412.19616, section 3

    At the start A = 0 and m = |W0|_row, so the output equals the base layer's bit for bit. W0 and b are the base
    layer's own parameters; W0 is frozen. `norm_gradient` "full" differentiates through the norm, "detached" takes it
    as a constant (DoRA). Dropout acts on the input of the low-rank path only, with a mask that is drawn again in
    backward. The magnitude is kept in at least float32, where a small step on a value near 1 is not rounded away;
    casting the module casts it.

    `activations` says what forward keeps for backward beside the input, which `nn.Linear` keeps too: "least" nothing
    that grows with the tokens; "fast" the output and x B^T, so that nothing is computed twice; "auto" the output where
    the model keeps it anyway, found at the first backward pass and fixed from then on (it stands in the state dict,
    since kept and recomputed outputs differ in rounding). An output that is kept must not be changed in place.
    `base_bits` 8 or 4 keeps W0 as int8 with a scale a row, or as 4-bit NormalFloat with a scale for 64 values, rounded
    once: a copy of the layer's own, whose row norms are those of the rounded weight.

    Shapes: base weight (O, I), `factor_out` A (O, R), `factor_in` B (R, I), `magnitude` m (O,); input (..., I).
    Raises: ValueError for a rank outside 1..min(O, I), and for another option outside its range; TypeError where `base`
        is not exactly an `nn.Linear`.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        norm_gradient: NormGradient = "full",
        activations: Activations = "auto",
        base_bits: BaseBits | None = None,
    ) -> None:
        super().__init__()
        if type(base) is not nn.Linear:
            raise TypeError(f"base is a {type(base).__name__}: only a plain nn.Linear can be replaced")
        rank = _check_options(rank, alpha, dropout, norm_gradient, activations, base_bits)
        self.in_features, self.out_features = base.in_features, base.out_features
        _check_layer("base", base, rank)
        self.rank, self.alpha, self.dropout, self.norm_gradient = rank, float(alpha), float(dropout), norm_gradient
        self.activations, self.scaling = activations, self.alpha / rank
        self.bias: nn.Parameter | None
        self.register_parameter("bias", base.bias)
        self.factor_out = nn.Parameter(base.weight.detach().new_zeros(self.out_features, rank))
        self.factor_in = nn.Parameter(base.weight.detach().new_empty(rank, self.in_features))
        self.base_weight: Tensor
        self.base_scale: Tensor | None
        self.base_bits = base_bits
        if base_bits is not None:
            quantised, scale = quantise(base.weight.detach(), base_bits)
            self.base_weight = nn.Parameter(quantised, requires_grad=False)
            self.register_buffer("base_scale", scale)
        else:
            self.base_weight = base.weight
            self.base_weight.requires_grad_(False)
            self.register_buffer("base_scale", None)
        self.base_square: Tensor
        self.register_buffer("base_square", None, persistent=False)
        self._renew_norms()
        self.magnitude = nn.Parameter(self.base_square.sqrt())
        self._owns_weight = base_bits is not None
        self._keeps_output = {"fast": True, "least": False}.get(activations)
        self._reset_factors(None)
        self.train(base.training)

    def _reset_factors(self, generator: torch.Generator | None) -> None:
        with torch.no_grad():
            self.factor_out.zero_()
            nn.init.kaiming_uniform_(self.factor_in, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, shape (..., O)."""
        if self.base_weight.requires_grad:
            raise RuntimeError(
                "base_weight requires a gradient: this layer keeps it frozen, set requires_grad to False"
            )
        dtype = self.factor_out.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        elif x.dtype != dtype:
            raise TypeError(f"input is {x.dtype}, the layer {dtype}: both must have one dtype")
        composing = tracing()
        if not composing and self._square_of != _written(self.base_weight):
            self._renew_norms()
        training = torch.is_grad_enabled() and not composing
        options = Options(
            self.scaling,
            self.norm_gradient == "full",
            self.dropout if self.training else 0.0,
            draw_seed() if self.training and self.dropout > 0 and not composing else 0,
            keep_output=training and bool(self._keeps_output),
            keep_hidden=training and self.activations == "fast",
        )
        weights = (self.base_weight, self.base_scale, self.bias, self.factor_out, self.factor_in)
        if composing:
            return composed(x.to(dtype), *weights, self.magnitude, self.base_square, options)
        y = norm_low_rank_linear(x, shared_cast(x, dtype), *weights, self.magnitude, self.base_square, options)
        if training and self._keeps_output is None and y.requires_grad:
            _undecided[self] = (TensorWeakRef(y), y._version)
            if _choose not in waiting:
                waiting.append(_choose)
        return y

    @property
    def weight(self) -> Tensor:
        """The merged weight W', shape (O, I), summed in at least float32; gradients reach factors and magnitude."""
        dtype = accumulation_dtype(self.factor_out.dtype)
        base = BaseWeight(self.base_weight, self.base_scale, self.in_features).rows(slice(None), dtype)
        direction = torch.addmm(base, self.factor_out.to(dtype), self.factor_in.to(dtype), alpha=self.scaling)
        square = direction.square().sum(1)
        norm = torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
        norm = norm if self.norm_gradient == "full" else norm.detach()
        gain = torch.where(norm > 0, self.magnitude.to(dtype) / torch.where(norm > 0, norm, 1.0), 0.0)
        return (direction * gain[:, None]).to(self.factor_out.dtype)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """Return an ordinary linear layer that computes the same; the bias is the same parameter.

        Raises: RuntimeError where the weights are sharded.
        """
        _check_whole(self.base_weight)
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=False)
        linear.weight = nn.Parameter(self.weight)
        linear.register_parameter("bias", self.bias)
        carry_hooks(self, linear)
        return linear.train(self.training)

    @torch.no_grad()
    def restart(self, generator: torch.Generator | None = None) -> list[nn.Parameter]:
        """Merge the factors into the frozen weight and start them anew; the layer's function stays the same.

        W0 becomes W', A becomes 0, B is drawn again, m becomes |W'|. Returns the two factors, whose moments and bases
        no longer mean anything: pass them to `GradNormLoRPAdamW.forget`. A weight that may be shared is replaced by a
        merged copy the first time, so that no other module changes. A W0 of 8 or 4 bits is rounded anew, so that the
        function then changes by that rounding.
        Raises: RuntimeError where the weights are sharded.
        """
        _check_whole(self.base_weight)
        merged = self.weight
        if self.base_bits is not None:
            quantised, self.base_scale = quantise(merged, self.base_bits)
            merged = quantised
        if self._owns_weight:
            self.base_weight.copy_(merged)
        else:
            self.base_weight = nn.Parameter(merged, requires_grad=False)
            self._owns_weight = True
        self._reset_factors(generator)
        self._renew_norms()
        self.magnitude.copy_(self.base_square.sqrt())
        return [self.factor_out, self.factor_in]

    # What an evaluation in inference mode is the first to need, training needs too, and could not save for backward.
    @torch.inference_mode(False)
    def _renew_norms(self) -> None:
        base: Any = self.base_weight.detach()
        if is_sharded(base):
            from gnlorp import sharded

            self.base_square = sharded.row_square_norms(base, self.base_scale, self.in_features)
        else:
            self.base_square = row_square_norms(base, self.base_scale, self.in_features)
        self._square_of = _written(self.base_weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NormLowRankLinear:
        scale = self.base_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if scale is not None and self.base_scale is not None:
            self.base_scale = scale.to(self.base_scale.device)  # a cast of the module must not round the scales
        # A cast must not round the cached norms below float32, nor leave them those of the uncast weight.
        self._renew_norms()
        return self

    def __prepare_scriptable__(self) -> NoReturn:
        not_scriptable(self)

    def get_extra_state(self) -> Tensor:
        """Return whether "auto" keeps the output: 0 not known yet, 1 yes, 2 no."""
        return torch.tensor({None: 0, True: 1, False: 2}[self._keeps_output], dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what another layer found; "fast" and "least" stay what they are."""
        if self.activations == "auto":
            self._keeps_output = {0: None, 1: True, 2: False}[int(state)]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        key = f"{prefix}_extra_state"
        if key not in state_dict:  # of a version that kept every output: this layer finds out anew
            state_dict[key] = torch.tensor(0, dtype=torch.uint8, device="cpu")
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.base_weight.requires_grad_(False)
        self._renew_norms()

    def extra_repr(self) -> str:
        """Return the layer's sizes and options."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}, norm_gradient={self.norm_gradient!r}, "
            f"activations={self.activations!r}" + (f", base_bits={self.base_bits}" if self.base_bits else "")
        )


def _written(weight: Tensor) -> object:
    """Return what changes when `weight` is written in place or given other memory; every time where nothing tells."""
    if weight.is_inference():
        return object()
    if is_sharded(weight):
        return weight._version, 0
    return weight._version, 0 if weight.is_meta else weight.untyped_storage()._cdata


def _check_whole(weight: Tensor) -> None:
    if is_sharded(weight):
        raise RuntimeError(
            "the layer's weights are sharded: merge and restart need whole ones; load the gathered state dict into a "
            "model that is not sharded"
        )


def undecided(module: nn.Module) -> bool:
    """Whether a module is a layer that has not learnt yet, as its first backward tells it, what the model keeps."""
    return isinstance(module, NormLowRankLinear) and module._keeps_output is None


_undecided: weakref.WeakKeyDictionary[NormLowRankLinear, tuple[TensorWeakRef, int]] = weakref.WeakKeyDictionary()
"""Layers that have not learnt yet what the model keeps -> their last output, and its version."""


def _choose() -> None:
    """Fix whether layers keep their outputs: those still alive after forward that nobody has changed in place."""
    while _undecided:
        layer, (output, version) = _undecided.popitem()
        y = output()
        if layer._keeps_output is None:
            layer._keeps_output = y is not None and y._version == version


def attach(
    model: nn.Module,
    targets: Iterable[str],
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    norm_gradient: NormGradient = "full",
    activations: Activations = "auto",
    base_bits: BaseBits | None = None,
) -> list[str]:
    """Replace the linear layers named by `targets` with `NormLowRankLinear`, and return their names.

    A target is a full module name, the end of one at a dot ("query", "output.dense"), or either with wildcards
    ("layers.*.mlp.*_proj"). A layer that the model holds under several names is replaced under all of them, and stays
    one layer. Only the weights of the replaced layers are frozen, with other linear layers that share them; nothing
    else in the model changes, and hooks on a replaced layer act on the new one. A transformers model whose head is
    replaced refuses `resize_token_embeddings` until it is merged. The options are the layer's.

    Raises: ValueError where a target matches no linear layer, the rank is above the smaller side of one, its weight is
        shared with another kind of module (a tied embedding) or has been offloaded; nothing is replaced then.
    """
    options = (alpha, dropout, norm_gradient, activations, base_bits)
    rank = _check_options(rank, *options)
    modules = dict(model.named_modules(remove_duplicate=False))
    linears = {name: module for name, module in modules.items() if name and type(module) is nn.Linear}
    chosen: set[str] = set()
    if targets is None:
        raise ValueError("targets None: must name at least one linear layer")
    for target in [targets] if isinstance(targets, str) else targets:
        found = [name for name in linears if _matches(name, target)]
        if not found:
            raise ValueError(_nothing_matched(target, modules, list(linears)))
        chosen.update(found)
    if not chosen:
        raise ValueError("targets is empty: name at least one linear layer")
    named = {linears[name] for name in chosen}
    names = [name for name, linear in linears.items() if linear in named]
    holders: dict[int, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), set()).add(module)
    for name in names:
        _check_layer(name, linears[name], rank)
        _check_tied(name, holders[id(linears[name].weight)])
    made: dict[nn.Module, NormLowRankLinear] = {}
    for base in dict.fromkeys(linears[name] for name in names):
        layer = made[base] = NormLowRankLinear(base, rank, *options)
        layer._owns_weight |= len(holders[id(base.weight)]) == 1
        carry_hooks(base, layer)
    swap(model, made)
    guard_resize(model, NormLowRankLinear)
    return names


def merge(model: nn.Module) -> nn.Module:
    """Fold every adapter into an ordinary linear layer, in place, and return the model."""
    if isinstance(model, NormLowRankLinear):
        return model.merge()
    swap(model, {module: module.merge() for module in model.modules() if isinstance(module, NormLowRankLinear)})
    guard_resize(model, NormLowRankLinear)
    return model


def _matches(name: str, target: str) -> bool:
    return fnmatch.fnmatchcase(name, target) or fnmatch.fnmatchcase(name, f"*.{target}")


def _nothing_matched(target: str, modules: dict[str, nn.Module], linears: list[str]) -> str:
    taken = [
        name for name, module in modules.items() if isinstance(module, NormLowRankLinear) and _matches(name, target)
    ]
    if taken:
        return f"target {target!r} names {taken[0]!r}, which is a NormLowRankLinear already"
    other = [(name, type(module).__name__) for name, module in modules.items() if name and _matches(name, target)]
    if other:
        return f"target {target!r} names {other[0][0]!r}, a {other[0][1]}: only a plain nn.Linear can be replaced"
    ends = sorted({end for name in linears for end in (name, name.rsplit(".", 1)[-1])})
    nearest = difflib.get_close_matches(target, ends, n=3, cutoff=0.0)
    known = sorted({name.rsplit(".", 1)[-1] for name in linears})
    return f"target {target!r} matches no linear layer; nearest: {nearest}; last parts of the known names: {known}"


def _check_options(
    rank: int, alpha: float, dropout: float, norm_gradient: str, activations: str, base_bits: int | None
) -> int:
    for name, value in (("alpha", alpha), ("dropout", dropout)):
        if not isinstance(value, Real) or isinstance(value, bool):
            raise ValueError(f"{name} {value!r}: must be a number")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha {alpha!r}: must be finite and above 0")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout {dropout!r}: must be at least 0 and below 1")
    for name, given, known in (
        ("norm_gradient", norm_gradient, get_args(NormGradient)),
        ("activations", activations, get_args(Activations)),
    ):
        if given not in known:
            nearest = difflib.get_close_matches(str(given), known, n=1, cutoff=0.0)
            raise ValueError(f"{name} {given!r}: must be one of {known}; nearest: {nearest}")
    if base_bits not in (None, 8, 4):
        nearest_bits = 4 if isinstance(base_bits, int) and base_bits < 6 else 8
        raise ValueError(
            f"base_bits {base_bits!r}: must be None (as the base layer has it), 8 or 4; nearest: {nearest_bits}"
        )
    return whole("rank", rank)


def _check_layer(name: str, linear: nn.Linear, rank: int) -> None:
    largest = min(linear.out_features, linear.in_features)
    if rank > largest:
        shape = (linear.out_features, linear.in_features)
        raise ValueError(f"rank {rank} for layer {name!r} of shape {shape}: must be at most {largest}")
    if linear._parameters.get("weight") is None:
        raise ValueError(
            f"layer {name!r} has no weight of its own, it is made from other tensors by pruning or a weight norm: make "
            "it permanent first (torch.nn.utils.prune.remove, remove_weight_norm)"
        )
    if linear.weight.is_meta and hasattr(linear, "_hf_hook"):
        raise ValueError(
            f"layer {name!r} has no weight, accelerate has offloaded it: attach before the model is dispatched"
        )


def _check_tied(name: str, holders: set[nn.Module]) -> None:
    other = [type(module).__name__ for module in holders if not isinstance(module, nn.Linear)]
    if other:
        raise ValueError(
            f"layer {name!r} shares its weight with a {other[0]}, which would be frozen with it: leave it out of the "
            "targets, or untie the two"
        )
