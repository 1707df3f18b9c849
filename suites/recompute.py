"""Switches of the model that save memory exactly, for all methods alike: what is cheap is made again in backward.

"norms" and "mlp": the outputs of normalisations and of the MLP's elementwise part (SwiGLU, GELU) are functions of
tensors that are kept anyway. What runs inside is not kept, nor do the linear layers that read the output keep it: they
are handed the same values, computed once more by the same operators, so that gradients are bit-equal; but a float32
normalisation written in Python (LLaMA's) reads its input twice, and those two gradients are then summed before the
residual's is added, not after: a rounding. Where a linear layer keeps another tensor (an autocast copy, a dropped
input), that one stays kept; within a checkpointed block, where nothing is kept, only what runs inside is left out of
what the block makes again.

"loss": cross-entropy of a language model's head by chunks, so that no (tokens, vocabulary) tensor exists; the loss in
float32, equal to the plain one to rounding, at the price of one more product with the head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from baselines.registry import checked_name
from gnlorp.base_weight import spans

Part = Literal["norms", "mlp", "loss"]
PARTS: tuple[Part, ...] = get_args(Part)
IGNORED = -100
CHANGED = (
    "a tensor that is needed to compute a part of the model again has been modified by an inplace operation since "
    "forward: leave recompute out, or do not change it in place"
)


def parts(given: str | Sequence[str]) -> tuple[Part, ...]:
    """Return the named parts, each once, in one order, so that equal choices make equal plans.

    Args:
        given: names, or names joined by commas; empty for none.

    Raises:
        ValueError: an unknown name.
    """
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else given
    chosen = {checked_name(name, PARTS, "part to recompute") for name in names if name}
    return tuple(part for part in PARTS if part in chosen)


def recompute(model: nn.Module, chosen: Sequence[Part]) -> None:
    """Change the model, in place, so that the chosen parts are made again in backward; after its method is attached.

    Raises:
        ValueError: the model has no such part.
    """
    found: dict[Part, Callable[[nn.Module], int]] = {"norms": _norms, "mlp": _mlps, "loss": _loss}
    missing = [part for part in chosen if not found[part](model)]
    if missing:
        rest = ",".join(part for part in chosen if part not in missing)
        raise ValueError(
            f"recompute = {missing[0]}: {type(model).__name__} has no such part that can be made again (of "
            f"{', '.join(PARTS)} it has {rest or 'none'} of those asked for; nearest allowed value: {rest or '()'})"
        )
    if set(chosen) & {"norms", "mlp"}:
        for module in model.modules():
            if _is_linear(module):
                module.forward = MethodType(_reading, module)


def _norms(model: nn.Module) -> int:
    norms = [m for m in model.modules() if type(m).__name__.endswith(("LayerNorm", "RMSNorm"))]
    for norm in norms:
        norm.forward = MethodType(_made_again, norm)
    return len(norms)


def _mlps(model: nn.Module) -> int:
    from transformers.models.llama.modeling_llama import LlamaMLP

    gated = [m for m in model.modules() if _same_code(type(m), LlamaMLP)]
    for mlp in gated:
        mlp.forward = MethodType(_gated, mlp)
    # BERT's kind: the activation is a module between two linear layers.
    found = [getattr(m, "intermediate_act_fn", None) for m in model.modules()]
    activations = [activation for activation in found if isinstance(activation, nn.Module)]
    for activation in activations:
        activation.forward = MethodType(_made_again, activation)
    return len(gated) + len(activations)


def _loss(model: nn.Module) -> int:
    from transformers import LlamaForCausalLM

    head = getattr(model, "lm_head", None)
    fits = _same_code(type(model), LlamaForCausalLM) and type(head) is nn.Linear and head.bias is None
    if fits:
        model.forward = MethodType(_with_chunked_loss, model)
    return int(fits)


def _same_code(kind: type[nn.Module], known: type[nn.Module]) -> bool:
    """Whether two modules compute by the same instructions on the same names."""
    one, other = (inspect.unwrap(k.forward).__code__ for k in (kind, known))
    return (one.co_code, one.co_names, one.co_consts[1:]) == (other.co_code, other.co_names, other.co_consts[1:])


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map of its input, plain or with factors of its own."""
    own = dict(module.named_parameters(recurse=False)).values()
    leaf = next(module.children(), None) is None
    return leaf and not isinstance(module, nn.Embedding) and any(parameter.ndim == 2 for parameter in own)


class _Region:
    """One call of a part: how it ran, and, in backward, its output made again with the graph behind it."""

    def __init__(self, run: Callable[..., Tensor], inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        kind = inputs[0].device.type
        self.run, self.parameters = run, parameters
        self.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        self.made: tuple[Tensor, list[Tensor]] | None = None

    def make(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return output and leaves; the same ones until `take`."""
        if self.made is None:
            leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
            kind, dtype, enabled = self.autocast
            with torch.enable_grad(), torch.autocast(kind, dtype, enabled):
                self.made = self.run(*leaves), [*leaves, *self.parameters]
        return self.made

    def take(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return output and leaves, and keep them no longer."""
        made, self.made = self.make(inputs), None
        return made


class _Again:
    """What stands in for a region's output where a linear layer would keep it."""

    def __init__(self, region: _Region, inputs: Sequence[Tensor], output: Tensor) -> None:
        self.region, self.inputs, self.version = region, inputs, output._version
        self.versions = [x._version for x in inputs]

    def output(self) -> Tensor:
        """Return the values of the region's output."""
        if [x._version for x in self.inputs] != self.versions:
            raise RuntimeError(CHANGED)
        return self.region.make(self.inputs)[0].detach()


class _Part(torch.autograd.Function):
    """A part whose inputs alone are kept."""

    @staticmethod
    def forward(ctx: Any, region: _Region, count: int, *tensors: Tensor) -> Tensor:
        ctx.region = region
        ctx.save_for_backward(*tensors[:count])
        return region.run(*tensors[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        output, leaves = ctx.region.take(ctx.saved_tensors)
        needed = ctx.needs_input_grad[2:]
        wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
        found = iter(torch.autograd.grad(output, wanted, grad))
        return None, None, *(next(found) if need else None for need in needed)


def _again(run: Callable[..., Tensor], inputs: Sequence[Tensor], parameters: Sequence[Tensor] = ()) -> Tensor:
    if not torch.is_grad_enabled():
        return run(*inputs)
    region = _Region(run, inputs, parameters)
    output: Tensor = _Part.apply(region, len(inputs), *inputs, *parameters)  # type: ignore[no-untyped-call]
    output._made_again = _Again(region, inputs, output)  # type: ignore[attr-defined]
    return output


def _made_again(self: Any, x: Tensor) -> Tensor:
    """Forward of a normalisation or an activation."""
    return _again(MethodType(type(self).forward, self), (x,), tuple(self.parameters(recurse=False)))


def _gated(self: Any, x: Tensor) -> Tensor:
    """Forward of a gated MLP."""
    product = _again(lambda gate, up: self.act_fn(gate) * up, (self.gate_proj(x), self.up_proj(x)))
    found: Tensor = self.down_proj(product)
    return found


def _reading(self: Any, x: Tensor, *rest: Any, **named: Any) -> Tensor:
    """Forward of a linear layer: where it would keep a part's output, it keeps how to make that again."""
    forward = type(self).forward
    again: _Again | None = getattr(x, "_made_again", None)
    if again is None or again.version != x._version or _others_pack():
        found: Tensor = forward(self, x, *rest, **named)
        return found
    storage = x.untyped_storage()._cdata

    def pack(kept: Tensor) -> tuple[Any, ...]:
        if kept.untyped_storage()._cdata == storage:
            return again, kept.size(), kept.stride(), kept.storage_offset()
        return kept.detach(), kept._version

    def unpack(packed: tuple[Any, ...]) -> Tensor:
        if isinstance(packed[0], _Again):
            return packed[0].output().as_strided(*packed[1:])
        kept, version = packed
        if kept._version != version:
            raise RuntimeError(CHANGED)
        return kept  # type: ignore[no-any-return]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        found = forward(self, x, *rest, **named)
    return found


def _others_pack() -> bool:
    """Whether somebody else decides already how tensors are kept: inside a checkpointed block nothing is."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _with_chunked_loss(self: Any, *given: Any, labels: Tensor | None = None, **named: Any) -> Any:
    """Forward of a language model: with labels, the loss alone; as it was where it is asked for another loss."""
    if labels is None or {"logits_to_keep", "num_items_in_batch", "shift_labels"} & set(named):
        return type(self).forward(self, *given, labels=labels, **named)
    from transformers.modeling_outputs import CausalLMOutputWithPast

    outputs = self.model(*given, **named)
    following = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]
    hidden = outputs.last_hidden_state
    return CausalLMOutputWithPast(loss=linear_cross_entropy(hidden, self.lm_head.weight, following.to(hidden.device)))


def linear_cross_entropy(hidden: Tensor, weight_VH: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the logits `hidden` W^T over the labels that are not `IGNORED`, in float32.

    Logits have the dtype of `hidden` (under autocast, its), as those of `nn.Linear`; all else is float32, a chunk of
    tokens at a time in forward, a chunk of the vocabulary in backward, so that each row of dL/dW is one product over
    all tokens:  dL/dW_v = P_v^T hidden,  dL/dhidden = sum_v P_v W_v,  P = (softmax - onehot) / count. torch's own
    `linear_cross_entropy` by chunks returns the loss in bfloat16 and, there, dL/dW from a sum over chunks of tokens.

    Shapes: hidden (..., H), weight (V, H), labels (...); returns a scalar.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):
        loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden.reshape(-1, hidden.shape[-1]), weight_VH, labels.reshape(-1), dtype
        )
    return loss


class _CrossEntropy(torch.autograd.Function):
    """See `linear_cross_entropy`."""

    @staticmethod
    def forward(ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor, dtype: torch.dtype) -> Tensor:
        high = torch.promote_types(dtype, torch.float32)
        weight, valid_T = weight_VH.to(dtype), labels_T != IGNORED
        normaliser_T = torch.empty(len(hidden_TH), dtype=high, device=hidden_TH.device)
        picked_T = torch.empty_like(normaliser_T)
        for t in spans(len(hidden_TH), len(weight_VH)):
            logits_tV = F.linear(hidden_TH[t].to(dtype), weight).to(high)
            picked_T[t] = logits_tV.gather(1, labels_T[t, None].clamp(min=0))[:, 0]
            torch.logsumexp(logits_tV, 1, out=normaliser_T[t])
            del logits_tV
        share_T = valid_T.to(high) / valid_T.sum()
        ctx.dtype = dtype
        ctx.save_for_backward(hidden_TH, weight_VH, labels_T, normaliser_T, share_T)
        return torch.where(valid_T, normaliser_T - picked_T, 0.0).sum() / valid_T.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_VH, labels_T, normaliser_T, share_T = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        dtype, high = ctx.dtype, normaliser_T.dtype
        hidden, share_T1 = hidden_TH.to(dtype), (share_T * grad)[:, None]
        weight_grad = torch.empty_like(weight_VH) if needs_weight else None
        hidden_grad = torch.zeros(hidden.shape, dtype=high, device=hidden.device) if needs_hidden else None
        for v in spans(len(weight_VH), len(hidden)):
            weight_vH = weight_VH[v].to(dtype)
            error_Tv = F.linear(hidden, weight_vH).to(high).sub_(normaliser_T[:, None]).exp_()
            inside_T = (labels_T >= v.start) & (labels_T < v.stop)
            place_T = (labels_T - v.start).clamp(0, v.stop - v.start - 1)
            error_Tv.scatter_add_(1, place_T[:, None], -inside_T.to(high)[:, None])
            error_Tv = error_Tv.mul_(share_T1).to(dtype)
            if weight_grad is not None:
                weight_grad[v] = error_Tv.T @ hidden
            if hidden_grad is not None:
                hidden_grad += error_Tv @ weight_vH
            del error_Tv
        return None if hidden_grad is None else hidden_grad.to(hidden_TH.dtype), weight_grad, None, None
