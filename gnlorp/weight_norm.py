"""Row norms from small products, and the linear map with its two gradient rules.

    V = W0 + s A B,   W' = diag(m / |V|) V,   y = x W'^T + b,   s = alpha / R

O out, I in, R rank, T tokens. No tensor of shape (O, I) is made, neither forward nor backward.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which norms are summed: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)


def row_square_norms(weight_OI: Tensor) -> Tensor:
    """Return the squared norm of each row, (O,), summed in at least float32."""
    dtype = accumulation_dtype(weight_OI.dtype)
    norm_O: Tensor = torch.linalg.vector_norm(weight_OI, dim=1, dtype=dtype)
    return norm_O.square_()


def product_norms(
    base_square_O: Tensor, weight_OI: Tensor, out_OR: Tensor, in_RI: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return |V| per row, the derivative-safe 1 / |V|^2 and V B^T, for V = W0 + s A B, without forming V.

    |V|^2 = |W0|^2 + 2 s rowsum((W0 B^T) * A) + s^2 rowsum((A (B B^T)) * A)

    Where the terms cancel to their own rounding error, |V|^2 is clamped there and 1 / |V|^2 is returned as 0, so that
    a meaningless norm has no gradient.

    Shapes: base_square (O,), weight (O, I), out A (O, R), in B (R, I); returns (O,), (O,), (O, R).
    """
    dtype = base_square_O.dtype
    cross_OR = (weight_OI @ in_RI.to(weight_OI.dtype).T).to(dtype)
    out_OR, in_RI = out_OR.to(dtype), in_RI.to(dtype)
    low_OR = (out_OR @ (in_RI @ in_RI.T)).mul_(scaling)
    low_square_O = (low_OR * out_OR).sum(1).mul_(scaling)
    low_OR += cross_OR
    square_O = base_square_O + cross_OR.add_(low_OR).mul_(out_OR).sum(1).mul_(scaling)
    floor_O = (base_square_O + low_square_O).mul_(torch.finfo(dtype).eps)
    inverse_square_O = torch.where(square_O > floor_O, square_O.reciprocal(), 0.0)
    return torch.maximum(square_O, floor_O).sqrt_(), inverse_square_O, low_OR


def _no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class _NormLowRank(torch.autograd.Function):
    """y = ((x W0^T) + s (low B^T) A^T) * g + b with g = m / |V|; see `norm_low_rank_linear`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        low: Tensor | None,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        out_OR: Tensor,
        in_RI: Tensor,
        magnitude_O: Tensor,
        base_square_O: Tensor,
        scaling: float,
        through_norm: bool,
    ) -> Tensor:
        dtype = x.dtype
        with _no_autocast(x.device):
            weight, bias = weight_OI.to(dtype), None if bias_O is None else bias_O.to(dtype)
            norm_O, inverse_square_O, low_OR = product_norms(base_square_O, weight, out_OR, in_RI, scaling)
            gain_O = torch.where(norm_O > 0, magnitude_O / norm_O, 0.0)
            y = F.linear(x, weight, bias)
            source = x if low is None else low
            hidden_TR = source.reshape(-1, in_RI.shape[1]) @ in_RI.to(dtype).T
            y_TO = y.view(-1, y.shape[-1]).addmm_(hidden_TR, out_OR.to(dtype).T, alpha=scaling)
            if bias is None:
                y_TO.mul_(gain_O)
            else:
                torch.addcmul((1 - gain_O) * bias, y_TO, gain_O, out=y_TO)
        ctx.scaling, ctx.has_low, ctx.through_norm = scaling, low is not None, through_norm
        ctx.save_for_backward(
            source, hidden_TR, y, weight_OI, bias_O, out_OR, in_RI, magnitude_O, gain_O,
            inverse_square_O if through_norm else None, low_OR if through_norm else None,
        )  # fmt: skip
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, hidden_TR, y, weight_OI, bias_O, out_OR, in_RI, magnitude_O, gain_O, inverse_square_O, low_OR = (
            ctx.saved_tensors
        )
        needs_x, needs_low, _, needs_bias, _, _, needs_magnitude = ctx.needs_input_grad[:7]
        scaling = ctx.scaling
        with _no_autocast(grad.device):
            grad_TO, source_TI = grad.reshape(-1, grad.shape[-1]), source.reshape(-1, source.shape[-1])
            weight, out, inner = weight_OI.to(grad.dtype), out_OR.to(grad.dtype), in_RI.to(grad.dtype)
            buffer_TO = torch.empty_like(grad_TO)
            energy_O = torch.mul(grad_TO, y.reshape(grad_TO.shape), out=buffer_TO).sum(0, dtype=gain_O.dtype)
            column_O = grad_TO.sum(0, dtype=gain_O.dtype) if bias_O is not None else None
            if column_O is not None:
                energy_O -= bias_O * column_O
            scaled_TO = torch.mul(grad_TO, gain_O, out=buffer_TO)
            out_grad = scaled_TO.T @ hidden_TR
            hidden_grad_TR = scaled_TO @ out
            x_grad = scaled_TO @ weight if needs_x else None
            del buffer_TO, scaled_TO
            hidden_grad_TR.mul_(scaling)
            out_grad.mul_(scaling)
            in_grad = hidden_grad_TR.T @ source_TI
            if ctx.through_norm:
                pull_O = (energy_O * inverse_square_O).mul_(-scaling)
                out_grad.addcmul_(pull_O[:, None], low_OR)
                pull_OR = (pull_O[:, None] * out_OR).to(grad.dtype)
                in_grad.addmm_(pull_OR.T, weight)
                in_grad.addmm_(pull_OR.T @ out, inner, alpha=scaling)
            low_grad = (hidden_grad_TR @ inner).view(source.shape) if needs_low else None
            if x_grad is not None:
                x_grad = (x_grad if ctx.has_low else x_grad.addmm_(hidden_grad_TR, inner)).view(source.shape)
            bias_grad = column_O.to(bias_O.dtype) if needs_bias and column_O is not None else None
            magnitude_grad = None
            if needs_magnitude:
                magnitude_grad = torch.where(magnitude_O != 0, energy_O / magnitude_O, 0.0).to(magnitude_O.dtype)
        factors = (out_grad.to(out_OR.dtype), in_grad.to(in_RI.dtype))
        return x_grad, low_grad, None, bias_grad, *factors, magnitude_grad, None, None, None


def norm_low_rank_linear(
    x: Tensor,
    low: Tensor | None,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    out_OR: Tensor,
    in_RI: Tensor,
    magnitude_O: Tensor,
    base_square_O: Tensor,
    scaling: float,
    through_norm: bool,
) -> Tensor:
    """Return y = m / |V| * (x W0^T + s low B^T A^T) + b; equations in `gnlorp/PAPER.md`.

    Gradients, with G = dL/dW', V' = V / |V|:

        dL/dm = rowsum(G * V')
        through_norm:  dL/dV = diag(m / |V|) (G - diag(dL/dm) V')     Salimans and Kingma 2016, equation 3
        otherwise:     dL/dV = diag(m / |V|) G                        DoRA, section 4.3: the norm is a constant
        dL/dA = s dL/dV B^T,   dL/dB = s A^T dL/dV

    `low` is what the low-rank path reads where that is not `x` (dropout); `base_square` is `row_square_norms(weight)`.
    The output is kept for the backward pass in place of a second tensor of its size, so it must not be changed in
    place. A row whose magnitude is exactly 0 has no output to read dL/dm from: its dL/dm is 0. The weight gets no
    gradient. Not differentiable twice.

    Shapes: x and low (..., I), weight (O, I), bias (O,), out A (O, R), in B (R, I), magnitude (O,); returns (..., O).
    """
    y: Tensor = _NormLowRank.apply(  # type: ignore[no-untyped-call]
        x, low, weight_OI, bias_O, out_OR, in_RI, magnitude_O, base_square_O, scaling, through_norm
    )
    return y
