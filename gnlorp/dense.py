"""The weight-normalised linear layer whose whole weight is trained, keeping for backward what `nn.Linear` keeps.

    W' = diag(m / |V|_row) V,   y = x W'^T + b          Salimans and Kingma 2016 (arXiv 1602.07868), equation 2

O out, I in, T tokens, c a chunk of rows. torch's parametrization of the same keeps W', (O, I), for backward.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnlorp.base_weight import BaseWeight, accumulation_dtype, alike_spans, row_square_norms, token_spans
from gnlorp.surgery import carry_hooks, not_scriptable
from gnlorp.weight_norm import by_hand, no_autocast, shared_cast, tracing


class _NormLinear(torch.autograd.Function):
    """y = (x V^T) * g + b with g = m / |V|."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cast: Tensor, weight_OI: Tensor, bias_O: Tensor | None, m_O: Tensor) -> Tensor:
        with no_autocast(x.device):
            norm_O = row_square_norms(weight_OI.detach()).sqrt_()
            gain_O = torch.where(norm_O > 0, m_O / norm_O, 0.0)
            y = BaseWeight(weight_OI, None).apply(cast, bias_O)
            if bias_O is None:
                y.mul_(gain_O)
            else:
                torch.addcmul((1 - gain_O) * bias_O, y, gain_O, out=y)
        ctx.x_dtype = x.dtype
        ctx.save_for_backward(cast, weight_OI, bias_O, m_O)
        return y

    @staticmethod
    @by_hand
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cast, weight_OI, bias_O, m_O = ctx.saved_tensors
        base, high = BaseWeight(weight_OI, None), accumulation_dtype(weight_OI.dtype)
        with no_autocast(grad.device):
            grad_TO, cast_TI = grad.reshape(-1, grad.shape[-1]), cast.reshape(-1, cast.shape[-1])
            # dL/dV = diag(g) (G - diag(raw / |V|^2) V),  raw = rowsum(G * V),  dL/dm = raw / |V|,  G = grad^T x
            weight_grad_OI, raw_O = torch.empty_like(weight_OI), m_O.new_empty(len(m_O), dtype=high)
            norm_O = row_square_norms(weight_OI).sqrt_()
            gain_O = torch.where(norm_O > 0, m_O / norm_O, 0.0)
            for c in alike_spans(*weight_OI.shape):
                dense_cI, rows_cI = grad_TO[:, c].T @ cast_TI, base.rows(c, grad_TO.dtype)
                raw_O[c] = (dense_cI * rows_cI).sum(1, dtype=high)
                radial_c = torch.where(norm_O[c] > 0, raw_O[c] / norm_O[c].square(), 0.0)
                dense_cI.addcmul_(rows_cI, -radial_c[:, None].to(dense_cI.dtype))
                weight_grad_OI[c] = dense_cI.mul_(gain_O[c, None])
                del dense_cI, rows_cI
            m_grad = torch.where(norm_O > 0, raw_O / norm_O, 0.0)
            x_grad = None
            if ctx.needs_input_grad[0]:
                x_grad_TI = torch.empty_like(cast_TI)
                for t in token_spans(*grad_TO.shape):
                    base.pull(grad_TO[t] * gain_O.to(grad_TO.dtype), x_grad_TI[t], add=False)
                x_grad = x_grad_TI.to(ctx.x_dtype).view(cast.shape)
            bias_grad = None
            if bias_O is not None and ctx.needs_input_grad[3]:
                bias_grad = grad_TO.sum(0, dtype=high).to(bias_O.dtype)
        return x_grad, None, weight_grad_OI, bias_grad, m_grad


class NormLinear(nn.Module):
    """A linear layer as magnitude times direction, both trained: m = |W| at the start, V the base layer's own weight.

    The gradient passes through the norm. The magnitude is kept in at least float32.

    Shapes: `direction` V (O, I), `magnitude` m (O,), bias (O,); input (..., I), output (..., O).
    Raises: TypeError where `base` is not exactly an `nn.Linear`.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        if type(base) is not nn.Linear:
            raise TypeError(f"base is a {type(base).__name__}: only a plain nn.Linear can be replaced")
        self.in_features, self.out_features = base.in_features, base.out_features
        self.direction = base.weight
        self.bias: nn.Parameter | None
        self.register_parameter("bias", base.bias)
        self.magnitude = nn.Parameter(row_square_norms(base.weight.detach()).sqrt_())
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, shape (..., O)."""
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else self.direction.dtype
        if not autocast and x.dtype != dtype:
            raise TypeError(f"input is {x.dtype}, the layer {dtype}: both must have one dtype")
        if tracing():
            return F.linear(x.to(dtype), self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))
        y: Tensor = _NormLinear.apply(  # type: ignore[no-untyped-call]
            x, shared_cast(x, dtype), self.direction, self.bias, self.magnitude
        )
        return y

    def __prepare_scriptable__(self) -> NoReturn:
        not_scriptable(self)

    @property
    def weight(self) -> Tensor:
        """The weight W', shape (O, I); gradients reach direction and magnitude."""
        high = self.direction.to(self.magnitude.dtype)
        return F.normalize(high, dim=1, eps=1e-30).mul(self.magnitude[:, None]).to(self.direction.dtype)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """Return an ordinary linear layer that computes the same; the bias is the same parameter."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=False)
        linear.weight = nn.Parameter(self.weight)
        linear.register_parameter("bias", self.bias)
        carry_hooks(self, linear)
        return linear.train(self.training)
