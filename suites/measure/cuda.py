"""What a step does on a CUDA device, traced on a processor: its rules of precision and its attention kernels.

Under autocast a processor keeps layer norms and softmax in bf16, a CUDA device makes them fp32 (torch's list of CUDA
ops that autocast to float32), which changes what is kept for backward. A processor's attention with dropout or in a
dtype without a fused kernel keeps all scores; a CUDA device has a fused kernel for both that keeps its output and one
fp32 number a query. Weights and batches, and all that no rule names, cost what they do on a processor.

Rules read from torch's documentation and sources, not measured: `python -m suites gpu-check` compares on a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

LOGSUMEXP_MULTIPLE = 32


def _known(owner: object, names: str) -> frozenset[Any]:
    return frozenset(getattr(owner, name) for name in names.split() if hasattr(owner, name))


FP32 = (
    _known(torch, "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow norm dist cdist")
    | _known(torch, "layer_norm group_norm cosine_similarity poisson_nll_loss renorm")
    | _known(Tensor, "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow norm dist")
    | _known(Tensor, "__pow__ __rpow__ renorm")
    | _known(F, "layer_norm group_norm cosine_similarity binary_cross_entropy_with_logits cross_entropy nll_loss")
    | _known(F, "l1_loss mse_loss smooth_l1_loss kl_div hinge_embedding_loss normalize softplus soft_margin_loss")
)
"""Whose floating arguments are cast to fp32."""

FP32_RESULT = (
    _known(torch, "softmax log_softmax sum prod cumsum cumprod")
    | _known(Tensor, "softmax log_softmax sum prod cumsum cumprod")
    | _known(F, "softmax log_softmax softmin")
)
"""Who are asked for an fp32 result, unless a dtype is given."""

ATTENTION = F.scaled_dot_product_attention


@contextmanager
def cuda_rules(in_backward: bool = True) -> Iterator[None]:
    """Let what runs inside, on a processor, allocate as it would on a CUDA device.

    `in_backward`: whether forwards run in backward (what is computed again), or autocast holds there: else the rules
    have nothing to say within it, and cost their time at every operator.
    """
    with _Rules(in_backward):
        yield


class _Rules(TorchFunctionMode):
    def __init__(self, in_backward: bool) -> None:
        super().__init__()
        self._within: AbstractContextManager[object] = self if in_backward else nullcontext()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is ATTENTION:
            return _attention(*args, **kwargs)
        if func is Tensor.backward:
            with self._within:
                return _backward(*args, **kwargs)
        if getattr(func, "_name", "") == "bitsandbytes::gemm_4bit":
            return _four_bit_product(*args, **kwargs)
        if torch.is_autocast_enabled("cpu"):
            if func in FP32:
                return func(*map(_high, args), **{name: _high(value) for name, value in kwargs.items()})
            if func in FP32_RESULT and kwargs.get("dtype") is None and _is_low(args):
                kwargs["dtype"] = torch.float32
        return func(*args, **kwargs)


def _backward(
    loss: Tensor, gradient: Tensor | None = None, retain_graph: bool | None = None, create_graph: bool = False,
    inputs: Any = None,
) -> None:  # fmt: skip
    """Run the engine itself: torch's own functions around it would leave the mode first."""
    gradient = torch.ones_like(loss) if gradient is None else gradient
    keep = create_graph if retain_graph is None else retain_graph
    run = torch.autograd.Variable._execution_engine.run_backward
    run((loss,), (gradient,), keep, create_graph, tuple(inputs or ()), allow_unreachable=True, accumulate_grad=True)


def _is_low(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and args[0].dtype in (torch.bfloat16, torch.float16)


def _high(value: Any) -> Any:
    low = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if low else value


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **given: Any) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        low = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(low), key.to(low), value.to(low)
    found: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return found


def _four_bit_product(
    x: Tensor, packed: Tensor, shape: Any, absmax: Tensor, block: int, kind: str, bias: Tensor | None = None,
    absmax_8bit: Tensor | None = None, absmax_code: Tensor | None = None, absmax_offset: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Do what bitsandbytes does beyond some hundred tokens: write the weight out in x's dtype, and multiply."""
    if absmax_8bit is not None:
        assert absmax_offset is not None
        absmax = torch.ops.bitsandbytes.dequantize_blockwise.default(
            absmax_8bit, absmax, absmax_code, 256, torch.float32
        )
        absmax = absmax + absmax_offset
    weight = torch.ops.bitsandbytes.dequantize_4bit.default(packed, absmax, block, kind, shape, x.dtype)
    return F.linear(x, weight, bias)


class _Attention(torch.autograd.Function):
    """A fused attention kernel's bytes, and no value: shapes (B, H, T, D), the output laid out as (B, T, H, D)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, length, _ = query.shape
        out = query.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)
        padded = -(-length // LOGSUMEXP_MULTIPLE) * LOGSUMEXP_MULTIPLE
        kept = query.new_empty(rows, heads, padded, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, kept = ctx.saved_tensors
        # The sum of output times its gradient, a number a query.
        sums = torch.empty_like(kept)
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del sums
        return grads
