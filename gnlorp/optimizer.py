"""The optimizer: AdamW on projected gradients, a thin class around the functions of `gnlorp.update`."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from gnlorp.checks import OPTIONS, check_group, check_names, check_state, is_sharded, needed_layout, whole
from gnlorp.layer import NormLowRankLinear
from gnlorp.moments import Layout, MomentRule, State, zeros
from gnlorp.projection import BasisKind, Side
from gnlorp.update import (
    accumulate_projected_,
    gradient_norms,
    step_projected_,
    update_plain_,
    update_projected_,
    usable,
)


class Diverged(FloatingPointError):
    """Too many steps in a row had a gradient that was not finite."""


def param_groups(model: nn.Module, projection_rank: int | None, **options: Any) -> list[dict[str, Any]]:
    """Return the optimizer's groups: the trainable factors, projected, and every other trainable parameter, plain.

    `options` are those of a group of `GradNormLoRPAdamW`; the plain group takes lr, betas, eps, weight_decay and
    state_bits of them.

    Raises: ValueError where the model has no trainable factor, and for an unknown option.
    """
    check_names(options)
    known = {
        id(factor)
        for module in model.modules()
        if isinstance(module, NormLowRankLinear)
        for factor in (module.factor_out, module.factor_in)
    }
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    factors = [parameter for parameter in trainable if id(parameter) in known]
    others = [parameter for parameter in trainable if id(parameter) not in known]
    if not factors:
        raise ValueError("the model has no trainable factor: call attach first")
    shared: dict[str, Any] = {
        key: options[key] for key in ("lr", "betas", "eps", "weight_decay", "state_bits") if key in options
    }
    groups: list[dict[str, Any]] = [{"params": factors, "projection_rank": projection_rank, **options}]
    return groups + ([{"params": others, "projection_rank": None, **shared}] if others else [])


class GradNormLoRPAdamW(Optimizer):
    """AdamW whose moments live on the projected gradient: GradNormLoRP on factors, GaLore on dense weights.

        R = G Q (or Q^T G, or U^T G Q),   N = Adam(R),   W <- (1 - lr * weight_decay) W - lr * scale * N Q^T

    arXiv 2412.19616, algorithm 1; arXiv 2403.03507, algorithm 2. A group whose `projection_rank` is None gets plain
    AdamW, equal to `torch.optim.AdamW`. Every option but `max_skips` can be set for a group.

    side: the basis spans the "small" side of a parameter, the "large" one, or "both".
    basis: "exact" singular vectors, or "warm": of a block Krylov space from the old basis, where that is cheaper.
    moments: at a refresh "keep" them, "rotate" them into the new basis, or "reset" them with their step counter.
    state_bits: 32, or 8 through bitsandbytes; bytes in `gnlorp.moments.optimizer_state_bytes`.
    noise_floor: with side "both", entries of R under this part of its largest one (at least one rounding of the
        basis's dtype) are 0, since right after a refresh they are rounding noise.

    A step in which a gradient has a NaN or an Inf, or is too large for its second moment, is skipped whole and counted
    in `skipped_steps`; after `max_skips` in a row `Diverged` is raised. Too large: (1 - b2) g^2 is above 3.4e38 in
    float32, so g above 5.8e20 by default, g an entry, of a projected gradient its norm; above 65504 and so 8.1e3 where
    a plain parameter is float16. `last_refreshed` tells whether the last step fitted a basis, `last_gradient_norm` the
    norm over all gradients of the last step, None before the first. `refresh_gap` and `set_refresh_gap` read and set
    the gap of every projected group, `supports_per_layer` tells whether `per_layer` is possible.

    Parameters may be sharded by FSDP2's `fully_shard`: see `gnlorp.sharded`, and its `placement` for the dimension.

    Raises: ValueError for an option that is unknown or outside its range, a sparse gradient, and a parameter that
        cannot be projected or is sharded in another way; RuntimeError where bitsandbytes is needed and missing.
    """

    options: ClassVar[tuple[str, ...]] = OPTIONS
    # Whether a step needs no more than the sum of projected gradients; a rule that needs whole ones sums those.
    sums_projected: ClassVar[bool] = True
    # Whether its rule for projected parameters works on shards of them.
    takes_shards: ClassVar[bool] = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        projection_rank: int | None = None,
        refresh_gap: int = 200,
        scale: float = 1.0,
        side: Side = "small",
        basis: BasisKind = "exact",
        moments: MomentRule = "keep",
        state_bits: int = 32,
        allow_full_rank: bool = False,
        noise_floor: float = 1e-5,
        max_skips: int = 10,
    ) -> None:
        self.max_skips = whole("max_skips", max_skips)
        self.skipped_steps = 0
        self.last_refreshed = False
        self.last_gradient_norm: float | None = None
        self._skips_in_a_row = 0
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._reduce: Callable[[Tensor], Any] | None = None
        self._accumulation = 1
        self._pass = _Pass()
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "projection_rank": projection_rank,
            "refresh_gap": refresh_gap, "scale": scale, "side": side, "basis": basis, "moments": moments,
            "state_bits": state_bits, "allow_full_rank": allow_full_rank, "noise_floor": noise_floor,
        }  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as `torch.optim.Optimizer` does, and check its options and shapes."""
        check_names(param_group, self.options)
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
            self._check_shards(self.param_groups[-1])
        except (ValueError, RuntimeError):
            self.param_groups.pop()
            raise
        if self._hooks:
            self._hook_group(len(self.param_groups) - 1)

    # Outside of graphs, as what it does depends on values: whether gradients are finite, and where a basis is due.
    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step, or with per-layer updates close the backward pass; return the closure's loss.

        What `torch.compile` makes of a function that calls it leaves the graph for it; one whole graph of it there is
        none (`fullgraph=True` says so).

        Raises: Diverged after `max_skips` skipped steps in a row; ValueError for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Without a backward pass since the last step there is nothing to close: gradients set by hand are used.
        if self._pass.seen:
            self._close_pass()
            return loss
        work = [[weight for weight in group["params"] if weight.grad is not None] for group in self.param_groups]
        norms = iter(_norms([weight.grad for weights in work for weight in weights]))
        grouped = [[next(norms) for _ in weights] for weights in work]
        skipped = not all(map(self._usable, grouped, work, self.param_groups))
        refreshed = False
        if not skipped:
            for group, weights, each in zip(self.param_groups, work, grouped, strict=True):
                refreshed |= self._update(group, weights, each)
        self._count(skipped, refreshed, math.hypot(*(norm for each in grouped for norm in each)))
        return loss

    def per_layer(
        self, enable: bool = True, reduce: Callable[[Tensor], Any] | None = None, accumulation: int = 1
    ) -> None:
        """Update each parameter inside backward, as soon as its gradient is there, and free the gradient at once.

        `step` must still be called once a step: it counts, and marks the end of the step. A gradient that is not
        finite is skipped alone, since others have been used already. Gradients cannot be clipped by their common norm,
        nor unscaled by a GradScaler. The hooks do not keep the optimizer alive: a dropped one lets the model go.

        accumulation: backward passes a step. Projection is linear, so that projected gradients are summed, and each
            whole one is freed at once; a plain parameter sums its gradient in `.grad` and is stepped in the last pass.
            Where a basis is due it is fitted to the first pass's gradient that is not 0, since the sum of whole ones
            is never there: with bases given, the step is the ordinary one up to rounding. `last_gradient_norm` is None
            then.

        reduce: called with each gradient before its use, to average it over all ranks in place. Where there are
            several it is needed: DistributedDataParallel averages a gradient only after it has been used here. FSDP2
            hands over the gradient of a sharded parameter summed already: `reduce` is not called with those.

        Raises: RuntimeError on several ranks without `reduce`; in a backward pass before `step` beyond `accumulation`;
            in `GradScaler.step`.
        """
        if enable:
            self._check_ranks(reduce)
        for handle in self._hooks:
            handle.remove()
        self._hooks, self._reduce = [], reduce
        self._accumulation = whole("accumulation", accumulation)
        self._pass = _Pass()
        if enable:
            for index in range(len(self.param_groups)):
                self._hook_group(index)

    @property
    def supports_per_layer(self) -> bool:
        """Whether `per_layer` works as it is: on one rank, or sharded; whole parameters of several need `reduce`."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return True
        return all(is_sharded(weight) for group in self.param_groups for weight in group["params"])

    @property
    def refresh_gap(self) -> int | None:
        """Steps between new bases: the smallest gap of the projected groups, None where nothing is projected."""
        return min((group["refresh_gap"] for group in self._projected()), default=None)

    def set_refresh_gap(self, gap: int) -> bool:
        """Fit new bases every `gap` steps from now on, in every projected group; return whether there is one.

        Raises: ValueError for a gap that is not a whole number of at least 1.
        """
        gap, groups = whole("refresh_gap", gap), self._projected()
        for group in groups:
            group["refresh_gap"] = gap
        return bool(groups)

    @torch.no_grad()
    def prepare(self) -> None:
        """Make the state of every trainable parameter that has none, zeros at step 0, as a first step would find it.

        So that `torch.distributed.checkpoint`, which loads into tensors that are there, finds all of them.
        """
        for group in self.param_groups:
            for weight in group["params"]:
                if not weight.requires_grad or self.state[weight]:
                    continue
                if is_sharded(weight):
                    from gnlorp import sharded

                    sharded.begin_(weight, self.state[weight], group)
                else:
                    self.state[weight].update(self._new_state(weight, group))

    def forget(self, params: Iterable[Tensor]) -> None:
        """Drop the moments, bases and step counters of these parameters, as after a restart of their factors."""
        for weight in params:
            self.state.pop(weight, None)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, with per-layer updates also sums of them that no step has used; what is used stays so."""
        super().zero_grad(set_to_none)
        self._pass.drop_open()
        if not self._pass.seen:
            self._pass = _Pass()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and numbers: it loads with `weights_only=True`."""
        counts = {"skipped_steps": self.skipped_steps, "in_a_row": self._skips_in_a_row}
        return {**super().state_dict(), "skips": counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state bit for bit, dtypes included, as a copy.

        A step that per-layer updates have begun is given up, its gradients and their sums with it.

        Raises: ValueError where groups or options are another optimizer's, or a tensor's name, shape or dtype is not
            what its parameter needs; nothing is loaded then.
        """
        if not isinstance(state_dict, dict):
            self._check_state(state_dict)
        taken: dict[str, Any] = {}

        # The base class casts every state tensor to its parameter's dtype: moments must keep their own.
        def take(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            self._check_state(given)
            taken.update(given)
            return {**given, "state": {}}

        def fill(_: Optimizer) -> None:
            weights = [weight for group in self.param_groups for weight in group["params"]]
            ids = [number for group in taken["param_groups"] for number in group["params"]]
            for number, weight in zip(ids, weights, strict=True):
                if number in taken["state"]:
                    self.state[weight] = _copied(taken["state"][number], weight.device)

        handles = [
            self.register_load_state_dict_pre_hook(take),
            self.register_load_state_dict_post_hook(fill, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()
        # Sums of projected gradients stand in the coordinates of bases that are gone.
        if self._hooks:
            self.zero_grad()
            self._pass = _Pass()
        counts = taken.get("skips", {"skipped_steps": 0, "in_a_row": 0})
        self.skipped_steps, self._skips_in_a_row = counts["skipped_steps"], counts["in_a_row"]

    def __getstate__(self) -> dict[str, Any]:
        kept = ("max_skips", "skipped_steps", "last_refreshed", "last_gradient_norm", "_skips_in_a_row")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_hooks" not in self.__dict__:
            self._hooks, self._reduce, self._accumulation, self._pass = [], None, 1, _Pass()
        super().__setstate__(state)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler.step asks this before anything else.
        if self._hooks:
            raise RuntimeError(
                "GradScaler with per-layer updates: gradients are used inside backward, before it can unscale them; "
                "train in bfloat16 without a scaler, or call per_layer(False)"
            )
        return False

    # What another rule for the projected parameters has its own of: which gradients it can use, the tensors of a state,
    # how it begins, and `_update`; its options stand in `options`.
    def _usable(self, norms: Sequence[float], weights: Sequence[Tensor], group: dict[str, Any]) -> bool:
        return usable(norms, weights, group)

    def _layout(self, weight: Tensor, group: dict[str, Any]) -> Layout:
        return needed_layout(weight, group)

    def _new_state(self, weight: Tensor, group: dict[str, Any]) -> State:
        return {"step": 0, **zeros(self._layout(weight, group), weight.device)}

    def _check_state(self, given: Any) -> None:
        check_state(self.param_groups, given, self.options, self._layout)

    def _check_shards(self, group: dict[str, Any]) -> None:
        if group["projection_rank"] is None or self.takes_shards:
            return
        for weight in group["params"]:
            if is_sharded(weight):
                raise ValueError(
                    f"parameter of shape {tuple(weight.shape)} is sharded: {type(self).__name__} has a rule of its own "
                    "for projected parameters, which needs whole ones (allowed: parameters kept whole by "
                    "ignored_params of fully_shard)"
                )

    def _projected(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["projection_rank"] is not None]

    def _update(self, group: dict[str, Any], weights: list[Tensor], norms: list[float]) -> bool:
        if not weights:
            return False
        grads = [weight.grad for weight in weights if weight.grad is not None]
        states = [self.state[weight] for weight in weights]
        if any(map(is_sharded, weights)):
            return self._update_shards(group, weights, norms)
        if group["projection_rank"] is None:
            update_plain_(weights, grads, states, group)
            return False
        return update_projected_(weights, grads, states, norms, group)

    def _update_shards(self, group: dict[str, Any], weights: list[Tensor], norms: list[float]) -> bool:
        """Do what `_update` does where some weights are sharded; the whole ones are stepped by themselves."""
        from gnlorp import sharded

        pairs = list(zip(weights, norms, strict=True))
        own = [(weight, norm) for weight, norm in pairs if not is_sharded(weight)]
        refreshed = self._update(group, [weight for weight, _ in own], [norm for _, norm in own])
        shared: list[Any] = [weight for weight in weights if is_sharded(weight)]
        states = [self.state[weight] for weight in shared]
        grads = [weight.grad for weight in shared]
        if group["projection_rank"] is None:
            sharded.update_plain_(shared, grads, states, group)
            return refreshed
        some = [norm for weight, norm in pairs if is_sharded(weight)]
        return sharded.update_projected_(shared, grads, states, some, group) or refreshed

    def _count(self, skipped: bool, refreshed: bool, norm: float | None) -> None:
        self.last_refreshed, self.last_gradient_norm = refreshed, norm
        self._skips_in_a_row = self._skips_in_a_row + 1 if skipped else 0
        self.skipped_steps += skipped
        if self._skips_in_a_row >= self.max_skips:
            raise Diverged(f"{self._skips_in_a_row} steps in a row had a gradient that was not finite")

    def _check_ranks(self, reduce: Callable[[Tensor], Any] | None) -> None:
        if reduce is None and not self.supports_per_layer:
            raise RuntimeError(
                f"per-layer updates on {dist.get_world_size()} ranks: each gradient would be used before "
                "DistributedDataParallel averages it, and the ranks drift apart; leave per_layer off, or train the "
                "bare model and give reduce, which averages a gradient in place"
            )

    def _hook_group(self, index: int) -> None:
        # Through a weak reference: parameter -> hook -> optimizer -> parameter would be a cycle that nothing collects.
        me = weakref.ref(self)

        def run(grown: Tensor) -> None:
            optimizer = me()
            if optimizer is not None:
                optimizer._update_in_backward(optimizer.param_groups[index], grown)

        for weight in self.param_groups[index]["params"]:
            # Torch puts no hook on a frozen parameter, which may be trained later.
            trained = weight.requires_grad
            self._hooks.append(weight.requires_grad_().register_post_accumulate_grad_hook(run))
            weight.requires_grad_(trained)

    def _sums(self, group: dict[str, Any]) -> bool:
        return self.sums_projected and group["projection_rank"] is not None

    @torch.no_grad()
    def _update_in_backward(self, group: dict[str, Any], weight: Tensor) -> None:
        seen = self._pass.seen
        count = seen[id(weight)] = seen.get(id(weight), 0) + 1
        if count > self._accumulation:
            raise RuntimeError(
                f"a parameter got gradient {count} before step(): per-layer updates accumulate only as many as they "
                f"were told, {self._accumulation}; call step() after so many backward passes, or per_layer(False)"
            )
        if len(seen) == 1:
            self._check_ranks(self._reduce)
        last = count == self._accumulation
        if self._accumulation > 1:
            self._pass.open[id(weight)] = (group, weight)
        if not self._sums(group) and not last:
            return
        if self._accumulation == 1 or not self._sums(group):
            self._update_alone(group, weight)
        else:
            self._add_projected(group, weight)
            if last:
                self._step_sum(group, weight)
        if last:
            self._pass.open.pop(id(weight), None)

    def _average(self, weight: Tensor) -> None:
        if self._reduce is not None and weight.grad is not None and not is_sharded(weight):
            self._reduce(weight.grad)

    def _update_alone(self, group: dict[str, Any], weight: Tensor) -> None:
        self._average(weight)
        norm = _norms([weight.grad])[0]
        self._pass.add(norm)
        if self._usable([norm], [weight], group):
            self._pass.refreshed |= self._update(group, [weight], [norm])
        else:
            self._pass.skipped = True
        weight.grad = None

    def _add_projected(self, group: dict[str, Any], weight: Tensor) -> None:
        self._average(weight)
        grad, done = weight.grad, self._pass
        assert grad is not None
        norm = _norms([grad])[0]
        done.norm = None
        if not self._usable([norm], [weight], group):
            done.spoilt.add(id(weight))
        elif id(weight) not in done.spoilt:
            sums = done.sums
            accumulate = _on(weight, accumulate_projected_)
            total, fitted = accumulate(weight, grad, self.state[weight], norm, sums.get(id(weight)), group)
            done.refreshed |= fitted
            if total is not None:
                sums[id(weight)] = total
        weight.grad = None

    def _step_sum(self, group: dict[str, Any], weight: Tensor) -> None:
        done = self._pass
        total = done.sums.pop(id(weight), None)
        if id(weight) in done.spoilt or (total is not None and not math.isfinite(_sum_norm(weight, total))):
            done.skipped = True
        else:
            _on(weight, step_projected_)(weight, total, self.state[weight], group)

    def _close_pass(self) -> None:
        # Parameters that not every backward pass reached have been waiting for a gradient that never came.
        for group, weight in list(self._pass.open.values()):
            if self._sums(group):
                self._step_sum(group, weight)
            elif weight.grad is not None:  # else dropped since, as by `zero_grad` of the model
                self._update_alone(group, weight)
        done, self._pass = self._pass, _Pass()
        self._count(done.skipped, done.refreshed, done.norm)


@dataclasses.dataclass
class _Pass:
    """What has happened since the last step with per-layer updates.

    `seen`: gradients by parameter; `open`: parameters that wait for more of them; `sums`: of projected gradients;
    `spoilt`: parameters with a gradient that cannot be used; `norm`: None where the whole gradient was never there.
    """

    seen: dict[int, int] = dataclasses.field(default_factory=dict)
    open: dict[int, tuple[dict[str, Any], Tensor]] = dataclasses.field(default_factory=dict)
    sums: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    spoilt: set[int] = dataclasses.field(default_factory=set)
    skipped: bool = False
    refreshed: bool = False
    norm: float | None = 0.0

    def add(self, norm: float) -> None:
        """Add a parameter's norm to the common one."""
        self.norm = None if self.norm is None else math.hypot(self.norm, norm)

    def drop_open(self) -> None:
        """Forget what came of parameters that wait for more."""
        for key in self.open:
            self.seen.pop(key)
            self.sums.pop(key, None)
            self.spoilt.discard(key)
        self.open.clear()


def _on(weight: Tensor, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of `gnlorp.update`, or its namesake for weights that are sharded."""
    if not is_sharded(weight):
        return function
    from gnlorp import sharded

    found: Callable[..., Any] = getattr(sharded, function.__name__)
    return found


def _norms(grads: Sequence[Tensor | None]) -> list[float]:
    if any(map(is_sharded, grads)):
        from gnlorp import sharded

        return sharded.gradient_norms(grads)
    return gradient_norms(grads)


def _sum_norm(weight: Tensor, total: Tensor) -> float:
    if is_sharded(weight):
        from gnlorp import sharded

        return sharded.sum_norm(weight, total)  # type: ignore[arg-type]
    return gradient_norms([total])[0]


def _copied(state: State, device: torch.device) -> State:
    return {
        name: value.detach().to(device, copy=True).contiguous() if isinstance(value, Tensor) else value
        for name, value in state.items()
    }
