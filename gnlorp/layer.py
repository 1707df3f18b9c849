"""The weight-normalised low-rank linear layer, and how it is put into a model and folded out of it."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnlorp.weight_norm import accumulation_dtype, norm_low_rank_linear, row_square_norms

NormGradient = Literal["full", "detached"]


class NormLowRankLinear(nn.Module):
    """A linear layer as magnitude times direction, the direction a frozen weight plus a low-rank product.

        V = W0 + (alpha / R) A B,   W' = diag(m / |V|_row) V,   y = x W'^T + b          arXiv 2412.19616, section 3

    At the start A = 0 and m = |W0|_row, so the output equals the base layer's bit for bit. W0 and b are the base
    layer's own parameters; W0 is frozen. `norm_gradient` "full" differentiates through the norm, "detached" takes it
    as a constant (DoRA). Dropout acts on the input of the low-rank path only. The magnitude is kept in at least
    float32, where a small step on a value near 1 is not rounded away; casting the module casts it.

    Shapes: base weight (O, I), `factor_out` A (O, R), `factor_in` B (R, I), `magnitude` m (O,); input (..., I).
    Raises: ValueError for a rank outside 1..min(O, I), and for alpha, dropout or norm_gradient outside its range;
        TypeError where `base` is not exactly an `nn.Linear`.
    """

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0, norm_gradient: NormGradient = "full"
    ) -> None:
        super().__init__()
        if type(base) is not nn.Linear:
            raise TypeError(f"base is a {type(base).__name__}: only a plain nn.Linear can be replaced")
        _check_options(rank, alpha, dropout, norm_gradient)
        self.in_features, self.out_features = base.in_features, base.out_features
        _check_rank("base", base, rank)
        self.rank, self.alpha, self.dropout, self.norm_gradient = rank, float(alpha), float(dropout), norm_gradient
        self.scaling = self.alpha / rank
        self.base_weight = base.weight.requires_grad_(False)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", base.bias)
        self.factor_out = nn.Parameter(base.weight.new_zeros(self.out_features, rank))
        self.factor_in = nn.Parameter(base.weight.new_empty(rank, self.in_features))
        self.base_square: Tensor
        self.register_buffer("base_square", row_square_norms(base.weight.detach()), persistent=False)
        self.magnitude = nn.Parameter(self.base_square.sqrt())
        self._owns_weight = False
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
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        elif x.dtype != self.base_weight.dtype:
            raise TypeError(f"input is {x.dtype}, the layer {self.base_weight.dtype}: both must have one dtype")
        low = F.dropout(x, self.dropout) if self.training and self.dropout > 0 else None
        return norm_low_rank_linear(
            x, low, self.base_weight, self.bias, self.factor_out, self.factor_in,
            self.magnitude, self.base_square, self.scaling, self.norm_gradient == "full",
        )  # fmt: skip

    @torch.no_grad()
    def weight(self) -> Tensor:
        """Return the merged weight W', shape (O, I), summed in at least float32."""
        dtype = accumulation_dtype(self.base_weight.dtype)
        direction = torch.addmm(
            self.base_weight.to(dtype), self.factor_out.to(dtype), self.factor_in.to(dtype), alpha=self.scaling
        )
        norm = row_square_norms(direction).sqrt_()
        gain = torch.where(norm > 0, self.magnitude.to(dtype) / norm, 0.0)
        return direction.mul_(gain[:, None]).to(self.base_weight.dtype)

    def merge(self) -> nn.Linear:
        """Return an ordinary linear layer that computes the same; the bias is the same parameter."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=False)
        linear.weight = nn.Parameter(self.weight())
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    @torch.no_grad()
    def restart(self, generator: torch.Generator | None = None) -> list[nn.Parameter]:
        """Merge the factors into the frozen weight and start them anew; the layer's function stays the same.

        W0 becomes W', A becomes 0, B is drawn again, m becomes |W'|. Returns the two factors, whose moments and bases
        no longer mean anything: pass them to `GradNormLoRPAdamW.forget`. A weight that may be shared is replaced by a
        merged copy the first time, so that no other module changes.
        """
        merged = self.weight()
        if self._owns_weight:
            self.base_weight.copy_(merged)
        else:
            self.base_weight = nn.Parameter(merged, requires_grad=False)
            self._owns_weight = True
        self._reset_factors(generator)
        self._renew_norms()
        self.magnitude.copy_(self.base_square.sqrt())
        return [self.factor_out, self.factor_in]

    def _renew_norms(self) -> None:
        self.base_square = row_square_norms(self.base_weight.detach())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NormLowRankLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # A cast must not round the cached norms below float32, nor leave them those of the uncast weight.
        self._renew_norms()
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.base_weight.requires_grad_(False)
        self._renew_norms()

    def extra_repr(self) -> str:
        """Return the layer's sizes and options."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}, norm_gradient={self.norm_gradient!r}"
        )


def attach(
    model: nn.Module,
    targets: Iterable[str],
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    norm_gradient: NormGradient = "full",
) -> list[str]:
    """Replace the linear layers named by `targets` with `NormLowRankLinear`, and return their names.

    A target is a full module name, the end of one at a dot ("query", "output.dense"), or either with wildcards
    ("layers.*.mlp.*_proj"). A layer that the model holds under several names stays one layer. Only the weights of the
    replaced layers are frozen, with whatever shares them; nothing else in the model changes.

    Raises: ValueError where a target matches no linear layer, or the rank is above the smaller side of one; nothing
        is replaced then.
    """
    _check_options(rank, alpha, dropout, norm_gradient)
    modules = dict(model.named_modules(remove_duplicate=False))
    linears = {name: module for name, module in modules.items() if name and type(module) is nn.Linear}
    chosen: set[str] = set()
    for target in [targets] if isinstance(targets, str) else targets:
        found = [name for name in linears if _matches(name, target)]
        if not found:
            raise ValueError(_nothing_matched(target, modules, list(linears)))
        chosen.update(found)
    if not chosen:
        raise ValueError("targets is empty: name at least one linear layer")
    names = [name for name in linears if name in chosen]
    for name in names:
        _check_rank(name, linears[name], rank)
    holders: dict[int, set[tuple[int, str]]] = {}
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            holders.setdefault(id(parameter), set()).add((id(module), key))
    made: dict[int, NormLowRankLinear] = {}
    for name in names:
        base = linears[name]
        if id(base) not in made:
            made[id(base)] = NormLowRankLinear(base, rank, alpha, dropout, norm_gradient)
            made[id(base)]._owns_weight = len(holders[id(base.weight)]) == 1
        model.set_submodule(name, made[id(base)])
    return names


def merge(model: nn.Module) -> nn.Module:
    """Fold every adapter into an ordinary linear layer, in place, and return the model."""
    if isinstance(model, NormLowRankLinear):
        return model.merge()
    made: dict[int, nn.Linear] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, NormLowRankLinear):
            if id(module) not in made:
                made[id(module)] = module.merge()
            model.set_submodule(name, made[id(module)])
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


def _check_options(rank: int, alpha: float, dropout: float, norm_gradient: str) -> None:
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank {rank!r}: must be a whole number of at least 1")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha {alpha!r}: must be finite and above 0")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout {dropout!r}: must be at least 0 and below 1")
    known = get_args(NormGradient)
    if norm_gradient not in known:
        nearest = difflib.get_close_matches(str(norm_gradient), known, n=1, cutoff=0.0)
        raise ValueError(f"norm_gradient {norm_gradient!r}: must be one of {known}; nearest: {nearest}")


def _check_rank(name: str, linear: nn.Linear, rank: int) -> None:
    largest = min(linear.out_features, linear.in_features)
    if rank > largest:
        shape = (linear.out_features, linear.in_features)
        raise ValueError(f"rank {rank} for layer {name!r} of shape {shape}: must be at most {largest}")
