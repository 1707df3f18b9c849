"""Row norms from small products, and the linear map with its two gradient rules, lean in what it keeps for backward.

    V = W0 + s A B,   W' = diag(m / |V|) V,   y = x W'^T + b,   s = alpha / R

O out, I in, R rank, T tokens, c a chunk of rows of O or of T. No tensor of shape (O, I) is made, neither forward nor
backward, but chunks of it of at most `base_weight.CHUNK_ELEMENTS` values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gnlorp import dropout
from gnlorp.base_weight import (
    BaseWeight,
    accumulation_dtype,
    add_product,
    alike_spans,
    row_square_norms,
    spans,
    token_spans,
)


def product_norms(
    base_square_O: Tensor,
    base: BaseWeight,
    out_OR: Tensor,
    in_RI: Tensor,
    scaling: float,
    dtype: torch.dtype,
    image_OR: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return |V| per row and the derivative-safe 1 / |V|^2 for V = W0 + s A B, without forming V.

    |V|^2 = |W0|^2 + 2 s rowsum((W0 B^T) * A) + s^2 rowsum((A (B B^T)) * A)

    Where the terms cancel to their own rounding error, |V|^2 is clamped there and 1 / |V|^2 is returned as 0, so that
    a meaningless norm has no gradient. W0 B^T is computed in `dtype`, the rest in that of `base_square`. V B^T goes to
    `image`, (O, R), where that is given.

    Shapes: base_square (O,), weight (O, I), out A (O, R), in B (R, I); returns (O,), (O,).
    """
    high = base_square_O.dtype
    inner_RI, wide_RI = in_RI.to(dtype), in_RI.to(high)
    gram_RR = wide_RI @ wide_RI.T
    norm_O, inverse_O = torch.empty_like(base_square_O), torch.empty_like(base_square_O)
    for c in alike_spans(out_OR.shape[0], max(in_RI.shape)):
        a_cR = out_OR[c].to(high)
        low_cR = (a_cR @ gram_RR).mul_(scaling)  # s A (B B^T)
        low_square_c = (low_cR * a_cR).sum(1).mul_(scaling)  # s^2 rowsum(A (B B^T) * A)
        cross_cR = narrow(base.rows(c, dtype), inner_RI.T).to(high)  # W0 B^T
        if image_OR is not None:
            torch.add(low_cR, cross_cR, out=image_OR[c])
        square_c = base_square_O[c] + low_cR.add_(cross_cR, alpha=2).mul_(a_cR).sum(1).mul_(scaling)
        floor_c = (base_square_O[c] + low_square_c).mul_(torch.finfo(high).eps)
        inverse_O[c] = torch.where(square_c > floor_c, square_c.reciprocal(), 0.0)
        norm_O[c] = torch.maximum(square_c, floor_c).sqrt_()
    return norm_O, inverse_O


def narrow(wide: Tensor, thin: Tensor) -> Tensor:
    """Return a product of matrices; one of few columns is formed as its transpose: the wide factor is read in order."""
    return torch.mm(wide, thin) if thin.shape[1] > THIN else torch.mm(thin.T, wide.T).T


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which operators compute in the dtype that they are given."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def shared_cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x` in `dtype`, without history: one cast for all layers that read x, alive as long as x."""
    if x.dtype == dtype:
        return x
    # In inference mode a cast has no version that tells when x is written, and could not be saved for backward later.
    if torch.is_inference_mode_enabled() or x.is_inference():
        return x.detach().to(dtype)
    found = getattr(x, "_gnlorp_cast", None)
    if found is not None and found[0] == x._version and found[1].dtype == dtype:
        return cast(Tensor, found[1])
    made = x.detach().to(dtype)
    x._gnlorp_cast = (x._version, made)  # type: ignore[attr-defined]
    return made


def tracing() -> bool:
    """Whether a compiler, an exporter or a function transform is looking: they need torch's own operators."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def by_hand(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse `create_graph=True` for a backward that is not differentiable.

    torch's `once_differentiable` would say only sometimes that a second derivative lacks what passed through here.
    """

    @wraps(backward)
    def checked(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True: the backward of gnlorp's layers is written by hand and not differentiable; use "
                "torch.func (grad, jacrev, jvp), which gets torch's own operators, or merge the model first "
                "(gnlorp.merge)"
            )
        return backward(ctx, grad)

    return checked


WRITTEN, ADDED = 96, 8
"""What an element of V, written and scaled, and one that the low-rank path adds to, cost beside their products, in
multiplications of a product of matrices (measured on a CPU)."""
THIN = 32
"""Columns up to which a product is faster formed as its transpose (measured on a CPU)."""


@dataclass(frozen=True)
class Options:
    """How the map is computed. `probability` and `seed` are dropout's; `keep_*` say what backward finds kept."""

    scaling: float
    through_norm: bool
    probability: float = 0.0
    seed: int = 0
    keep_output: bool = False
    keep_hidden: bool = False

    def forms_weight(self, x_TI: Tensor, out_OR: Tensor) -> bool:
        """Whether chunks of V are formed: where it costs less than the low-rank path, and rounding keeps s A B in V."""
        (tokens, inputs), (outputs, rank) = x_TI.shape, out_OR.shape
        free = self.probability == 0 and not self.keep_output and not self.keep_hidden
        added = tokens * (outputs + inputs) * (rank + ADDED)
        return free and x_TI.dtype.itemsize >= 4 and outputs * inputs * WRITTEN < added

    def keeps_norms(self, x_TI: Tensor, out_OR: Tensor) -> bool:
        """Whether vectors of O are kept: where backward would need a product of its own to find them again."""
        return self.keep_hidden or not (self.through_norm or self.forms_weight(x_TI, out_OR))


@dataclass
class _Sums:
    """What backward sums over tokens, the gain m / |V| left out."""

    out_OR: Tensor  # G B^T = sum_t g_t hidden_t^T
    in_RI: Tensor  # (diag(gain) A)^T G, the gain within = sum_t A^T diag(gain) g_t low_t^T
    raw_O: Tensor  # rowsum(G * V), for an output that is kept: sum_t g_t y_t


class _NormLowRank(torch.autograd.Function):
    """y = ((x W0^T) + s (low B^T) A^T) * g + b with g = m / |V|; see `norm_low_rank_linear`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cast: Tensor,
        weight_OI: Tensor,
        scale_O: Tensor | None,
        bias_O: Tensor | None,
        out_OR: Tensor,
        in_RI: Tensor,
        magnitude_O: Tensor,
        base_square_O: Tensor,
        options: Options,
    ) -> Tensor:
        base, dtype, s = BaseWeight(weight_OI, scale_O, in_RI.shape[1]), cast.dtype, options.scaling
        with no_autocast(x.device):
            hidden_TR = image_OR = None
            cast_TI = cast.reshape(-1, cast.shape[-1])
            if options.forms_weight(cast_TI, out_OR):
                y = _through_weight(cast, base, bias_O, out_OR, in_RI, magnitude_O, s)
            else:
                if options.keep_hidden:
                    image_OR = torch.empty(out_OR.shape, dtype=base_square_O.dtype, device=x.device)
                norm_O, inverse_O = product_norms(base_square_O, base, out_OR, in_RI, s, dtype, image_OR)
                gain_O = torch.where(norm_O > 0, magnitude_O / norm_O, 0.0)
                y, hidden_TR = _through_factors(cast, base, bias_O, out_OR, in_RI, gain_O, options)
        ctx.options, ctx.x_dtype = options, x.dtype
        # Norms that backward finds again on its way are not kept: V B^T is needed there, or V.
        norms = (norm_O, inverse_O, gain_O) if options.keeps_norms(cast_TI, out_OR) else ()
        ctx.save_for_backward(
            cast, hidden_TR, y if options.keep_output else None, image_OR if options.through_norm else None,
            weight_OI, scale_O, bias_O, out_OR, in_RI, magnitude_O, base_square_O, *norms,
        )  # fmt: skip
        return y

    @staticmethod
    @by_hand
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _settle()
        cast, hidden_TR, y, image_OR, weight_OI, scale_O, bias_O, out_OR, in_RI, magnitude_O, base_square_O, *norms = (
            ctx.saved_tensors
        )
        needs_x, needs_bias, needs_m = (ctx.needs_input_grad[index] for index in (0, 4, 7))
        options: Options = ctx.options
        base, s = BaseWeight(weight_OI, scale_O, in_RI.shape[1]), options.scaling
        with no_autocast(grad.device):
            grad_TO, cast_TI = grad.reshape(-1, grad.shape[-1]), cast.reshape(-1, cast.shape[-1])
            y_TO = None if y is None else y.reshape(grad_TO.shape)
            formed = options.forms_weight(cast_TI, out_OR)
            if norms:
                norm_O, inverse_O, gain_O = norms
            elif not formed:
                image_OR = torch.empty(out_OR.shape, dtype=base_square_O.dtype, device=grad.device)
                norm_O, inverse_O = product_norms(base_square_O, base, out_OR, in_RI, s, cast.dtype, image_OR)
                gain_O = torch.where(norm_O > 0, magnitude_O / norm_O, 0.0)
            x_grad_TI = torch.empty_like(cast_TI) if needs_x else None
            # Sums over tokens: from row chunks of G = g^T x where nothing else has to be made again, else from tokens.
            if formed:
                sums, norm_O, gain_O = _by_formed_rows(
                    grad_TO, cast_TI, base, out_OR, in_RI, magnitude_O, x_grad_TI, options
                )
            elif options.probability == 0 and y_TO is None and hidden_TR is None:
                sums = _by_rows(grad_TO, cast_TI, base, out_OR, in_RI, gain_O, x_grad_TI, options)
            else:
                sums = _by_tokens(grad_TO, cast_TI, y_TO, hidden_TR, base, out_OR, in_RI, gain_O, x_grad_TI, options)
            sums_columns = bias_O is not None and (needs_bias or y is not None)
            column_O = grad_TO.sum(0, dtype=gain_O.dtype) if sums_columns else None
            raw_O = sums.raw_O
            if y is not None:  # y - b = gain * (x V^T)
                energy_O = raw_O if bias_O is None or column_O is None else raw_O - bias_O * column_O
                raw_O = torch.where(gain_O != 0, energy_O / gain_O, 0.0)
            # dL/dA = s diag(gain) (g^T hidden),  dL/dB = s A^T diag(gain) (g^T low), then what the norm takes away.
            out_grad, in_grad = sums.out_OR.mul_((gain_O * s)[:, None]), sums.in_RI.mul_(s)
            if options.through_norm and not formed:
                assert image_OR is not None
                radial_O = raw_O * gain_O * inverse_O
                _subtract_radial(out_grad, in_grad, radial_O, base, out_OR, in_RI, s, grad_TO.dtype, image_OR)
            m_grad = torch.where(norm_O > 0, raw_O / norm_O, 0.0) if needs_m else None
            x_grad = None if x_grad_TI is None else x_grad_TI.to(ctx.x_dtype).view(cast.shape)
            bias_grad = column_O.to(bias_O.dtype) if needs_bias and column_O is not None else None
        return (
            x_grad,
            None,
            None,
            None,
            bias_grad,
            out_grad.to(out_OR.dtype),
            in_grad.to(in_RI.dtype),
            m_grad,
            None,
            None,
        )


def _through_weight(
    x: Tensor,
    base: BaseWeight,
    bias_O: Tensor | None,
    out_OR: Tensor,
    in_RI: Tensor,
    magnitude_O: Tensor,
    scaling: float,
) -> Tensor:
    """Return x (diag(gain) V)^T + b, V formed by chunks of rows."""
    chunks = list(spans(len(out_OR), in_RI.shape[1]))
    y = x.new_empty(*x.shape[:-1], len(out_OR)) if len(chunks) > 1 else None
    for c in chunks:
        weight_cI = torch.addmm(base.rows(c, x.dtype), out_OR[c].to(x.dtype), in_RI.to(x.dtype), alpha=scaling)
        gain_c = _formed_norms(weight_cI, magnitude_O[c])[2]
        part = F.linear(x, weight_cI.mul_(gain_c[:, None]), None if bias_O is None else bias_O[c].to(x.dtype))
        del weight_cI
        if y is None:
            y = part
        else:
            y[..., c] = part
    assert y is not None
    return y


def _formed_norms(weight_cI: Tensor, magnitude_c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return |V| of rows of V, 1 / |V|^2 (0 for a row of zeros), and the gain."""
    square_c = row_square_norms(weight_cI)
    norm_c = square_c.sqrt()
    inverse_c = torch.where(square_c > 0, square_c.reciprocal(), 0.0)
    return norm_c, inverse_c, torch.where(square_c > 0, magnitude_c / norm_c, 0.0)


def _through_factors(
    x: Tensor,
    base: BaseWeight,
    bias_O: Tensor | None,
    out_OR: Tensor,
    in_RI: Tensor,
    gain_O: Tensor,
    options: Options,
) -> tuple[Tensor, Tensor | None]:
    """Return gain * (x W0^T + s (low B^T) A^T) + b and, where it is to be kept, low B^T."""
    # The dense path: x W0^T + b, with b taken out of the gain's reach below.
    y = base.apply(x, bias_O)
    y_TO, x_TI = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
    # The low path: s (low B^T) A^T, a chunk of tokens at a time where a mask is drawn.
    out, inner_T = out_OR.to(x.dtype).T, in_RI.to(x.dtype).T
    hidden: list[Tensor] = []
    for index, t in enumerate(_token_spans(x_TI, options)):
        low_tI = dropout.dropped(x_TI[t], options.probability, options.seed, index)
        hidden_tR = narrow(low_tI, inner_T)
        del low_tI
        y_TO[t].addmm_(hidden_tR, out, alpha=options.scaling)
        if options.keep_hidden:
            hidden.append(hidden_tR)
    # y = gain * (dense + low) + (1 - gain) * b
    if bias_O is None:
        y_TO.mul_(gain_O)
    else:
        torch.addcmul((1 - gain_O) * bias_O, y_TO, gain_O, out=y_TO)
    return y, hidden[0] if len(hidden) == 1 else torch.cat(hidden) if hidden else None


def _token_spans(cast_TI: Tensor, options: Options) -> Iterator[slice]:
    """Yield the tokens that are worked on at once: all of them where no mask is drawn."""
    if options.probability == 0:
        yield slice(0, len(cast_TI))
    else:
        # What is kept of each chunk makes rounds unlike one another.
        yield from (spans if options.keep_hidden else alike_spans)(*cast_TI.shape)


def _by_rows(
    grad_TO: Tensor,
    cast_TI: Tensor,
    base: BaseWeight,
    out_OR: Tensor,
    in_RI: Tensor,
    gain_O: Tensor,
    x_grad_TI: Tensor | None,
    options: Options,
) -> _Sums:
    """Return the sums from chunks of rows of G = g^T x, (c, I): the work of full training's weight gradient."""
    dtype, high = grad_TO.dtype, gain_O.dtype
    inner_RI, gained_OR = in_RI.to(dtype), (gain_O[:, None] * out_OR).to(dtype)
    out_sum_OR = torch.empty(out_OR.shape, dtype=high, device=grad_TO.device)
    in_sum_RI = torch.zeros(in_RI.shape, dtype=high, device=grad_TO.device)
    raw_O = torch.empty_like(gain_O)
    for c in alike_spans(out_OR.shape[0], in_RI.shape[1]):
        dense_cI = grad_TO[:, c].T @ cast_TI
        out_sum_OR[c] = narrow(dense_cI, inner_RI.T)  # G B^T
        in_sum_RI += gained_OR[c].T @ dense_cI  # (diag(gain) A)^T G
        raw_O[c] = dense_cI.mul_(base.rows(c, dtype)).sum(1, dtype=high)  # rowsum(G * W0)
        del dense_cI
    raw_O += (out_sum_OR * out_OR).sum(1).mul_(options.scaling)  # + s rowsum((G B^T) * A)
    if x_grad_TI is not None:
        _input_gradient(grad_TO, base, narrow(grad_TO, gained_OR), inner_RI, gain_O, x_grad_TI, options)
    return _Sums(out_sum_OR, in_sum_RI, raw_O)


def _by_formed_rows(
    grad_TO: Tensor,
    cast_TI: Tensor,
    base: BaseWeight,
    out_OR: Tensor,
    in_RI: Tensor,
    magnitude_O: Tensor,
    x_grad_TI: Tensor | None,
    options: Options,
) -> tuple[_Sums, Tensor, Tensor]:
    """Return the sums from row chunks of G and of V, with what the norm takes away left out already; |V|, the gain."""
    dtype, high, inner_RI = grad_TO.dtype, accumulation_dtype(grad_TO.dtype), in_RI.to(grad_TO.dtype)
    out_sum_OR = torch.empty(out_OR.shape, dtype=high, device=grad_TO.device)
    in_sum_RI = torch.zeros(in_RI.shape, dtype=high, device=grad_TO.device)
    raw_O, norm_O, gain_O = (magnitude_O.new_empty(len(magnitude_O), dtype=high) for _ in range(3))
    for c in alike_spans(out_OR.shape[0], in_RI.shape[1]):
        dense_cI = grad_TO[:, c].T @ cast_TI
        weight_cI = torch.addmm(base.rows(c, dtype), out_OR[c].to(dtype), inner_RI, alpha=options.scaling)
        norm_O[c], inverse_c, gain_c = _formed_norms(weight_cI, magnitude_O[c])
        raw_O[c] = (dense_cI * weight_cI).sum(1, dtype=high)  # rowsum(G * V)
        if options.through_norm:  # G - diag(raw / |V|^2) V
            dense_cI.addcmul_(weight_cI, (raw_O[c] * -inverse_c)[:, None])
        out_sum_OR[c], gain_O[c] = narrow(dense_cI, inner_RI.T), gain_c
        in_sum_RI += (gain_c[:, None] * out_OR[c]).to(dtype).T @ dense_cI
        del dense_cI
        if x_grad_TI is not None:  # dL/dx = g diag(gain) V
            add_product(x_grad_TI, grad_TO[:, c], weight_cI.mul_(gain_c[:, None]), first=c.start == 0)
        del weight_cI
    return _Sums(out_sum_OR, in_sum_RI, raw_O), norm_O, gain_O


def _by_tokens(
    grad_TO: Tensor,
    cast_TI: Tensor,
    y_TO: Tensor | None,
    hidden_TR: Tensor | None,
    base: BaseWeight,
    out_OR: Tensor,
    in_RI: Tensor,
    gain_O: Tensor,
    x_grad_TI: Tensor | None,
    options: Options,
) -> _Sums:
    """Return the sums from chunks of tokens: hidden, mask and output made again where they were not kept."""
    dtype, high = grad_TO.dtype, gain_O.dtype
    inner_RI, gained_OR = in_RI.to(dtype), (gain_O[:, None] * out_OR).to(dtype)
    out_sum_OR = in_sum_RI = raw_O = None
    for index, t in enumerate(alike_spans(*cast_TI.shape)):
        g_tO, x_tI = grad_TO[t], cast_TI[t]
        response_tO = base.apply(x_tI, None) if y_TO is None else y_TO[t]
        raw_O = _plus(raw_O, torch.mul(response_tO, g_tO, out=response_tO if y_TO is None else None).sum(0, dtype=high))
        del response_tO
        keep_tI = dropout.kept(x_tI, options.probability, options.seed, index)
        low_tI = x_tI if keep_tI is None else x_tI * keep_tI
        hidden_tR = narrow(low_tI, inner_RI.T) if hidden_TR is None else hidden_TR[t]
        hidden_grad_tR = narrow(g_tO, gained_OR)
        out_sum_OR = _plus(out_sum_OR, narrow(g_tO.T, hidden_tR).to(high))
        in_sum_RI = _plus(in_sum_RI, (hidden_grad_tR.T @ low_tI).to(high))
        del low_tI
        if x_grad_TI is not None:
            _input_gradient(g_tO, base, hidden_grad_tR, inner_RI, gain_O, x_grad_TI[t], options, keep_tI)
        del keep_tI
    assert out_sum_OR is not None
    assert in_sum_RI is not None
    assert raw_O is not None
    if y_TO is None:
        raw_O += (out_sum_OR * out_OR).sum(1).mul_(options.scaling)
    return _Sums(out_sum_OR, in_sum_RI, raw_O)


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    """Return a sum with one more part, the first of which becomes the sum."""
    return part if total is None else total.add_(part)


def _input_gradient(
    grad_TO: Tensor,
    base: BaseWeight,
    hidden_grad_TR: Tensor,
    inner_RI: Tensor,
    gain_O: Tensor,
    into_TI: Tensor,
    options: Options,
    keep_TI: Tensor | None = None,
) -> None:
    """Write dL/dx = (s hidden_grad B) * keep + (g * gain) W0 into `into_TI`."""
    torch.mm(hidden_grad_TR.mul_(options.scaling), inner_RI, out=into_TI)
    if keep_TI is not None:
        into_TI.mul_(keep_TI)
    for t in token_spans(*grad_TO.shape):
        base.pull(grad_TO[t] * gain_O.to(grad_TO.dtype), into_TI[t], add=True)


def _subtract_radial(
    out_grad_OR: Tensor,
    in_grad_RI: Tensor,
    radial_O: Tensor,
    base: BaseWeight,
    out_OR: Tensor,
    in_RI: Tensor,
    scaling: float,
    dtype: torch.dtype,
    image_OR: Tensor,
) -> None:
    """Take the radial part k V, k = gain raw / |V|^2, out of dL/dV:  dA -= s k (V B^T),  dB -= s (k A)^T V.

    `image` is V B^T, and (k A)^T V = (k A)^T W0 + s ((k A)^T A) B, by chunks of rows.
    """
    high = radial_O.dtype
    mix_RR = torch.zeros(len(in_RI), len(in_RI), dtype=high, device=in_RI.device)
    pull_O = radial_O * -scaling
    out_grad_OR.addcmul_(pull_O[:, None], image_OR)
    for c in alike_spans(out_OR.shape[0], max(in_RI.shape)):
        a_cR = out_OR[c].to(high)
        pulled_cR = pull_O[c, None] * a_cR
        mix_RR.addmm_(pulled_cR.T, a_cR)
        in_grad_RI += pulled_cR.to(dtype).T @ base.rows(c, dtype)
    in_grad_RI.addmm_(mix_RR, in_RI.to(high), alpha=scaling)


def norm_low_rank_linear(
    x: Tensor,
    cast: Tensor,
    weight_OI: Tensor,
    scale_O: Tensor | None,
    bias_O: Tensor | None,
    out_OR: Tensor,
    in_RI: Tensor,
    magnitude_O: Tensor,
    base_square_O: Tensor,
    options: Options,
) -> Tensor:
    """Return y = m / |V| * (x W0^T + s low B^T A^T) + b; equations in `gnlorp/PAPER.md`.

    Gradients, with G = dL/dW', V' = V / |V|:

        dL/dm = rowsum(G * V')
        through_norm:  dL/dV = diag(m / |V|) (G - diag(dL/dm) V')     Salimans and Kingma 2016, equation 3
        otherwise:     dL/dV = diag(m / |V|) G                        DoRA, section 4.3: the norm is a constant
        dL/dA = s dL/dV B^T,   dL/dB = s A^T dL/dV

    `low` is `x` after dropout, whose mask is a function of `options.seed` alone and is drawn again in backward. `cast`
    is `x` in the dtype of the computation (x itself, or a cast that layers may share); it is all that is kept for
    backward beside parameters (and, where the norm is a constant, vectors of O), unless `keep_output` (then the output
    must not be changed in place) or `keep_hidden`. `base_square` is `row_square_norms(weight, scale)`. A row whose
    magnitude is exactly 0 has no output to read dL/dm from: with `keep_output` its dL/dm is 0. The weight gets no
    gradient. Not differentiable twice: `create_graph=True` is refused.

    Shapes: x and cast (..., I), weight (O, I), scale, bias (O,), out A (O, R), in B (R, I), magnitude (O,); returns
    (..., O).
    """
    y: Tensor = _NormLowRank.apply(  # type: ignore[no-untyped-call]
        x, cast, weight_OI, scale_O, bias_O, out_OR, in_RI, magnitude_O, base_square_O, options
    )
    return y


def composed(
    x: Tensor,
    weight_OI: Tensor,
    scale_O: Tensor | None,
    bias_O: Tensor | None,
    out_OR: Tensor,
    in_RI: Tensor,
    magnitude_O: Tensor,
    base_square_O: Tensor,
    options: Options,
) -> Tensor:
    """Return the same map from torch's own operators, for compilers and function transforms, which differentiate it.

    What is kept for backward is then theirs to choose. Dropout is torch's, so its mask is another. `x` has the dtype
    of the computation.
    """
    dtype, high, s = x.dtype, base_square_O.dtype, options.scaling
    weight = BaseWeight(weight_OI, scale_O, in_RI.shape[1]).rows(slice(None), dtype)
    a_OR, b_RI = out_OR.to(high), in_RI.to(high)
    low_OR = s * (a_OR @ (b_RI @ b_RI.T))
    cross_OR = (weight @ in_RI.to(dtype).T).to(high)
    square_O = base_square_O + s * ((low_OR + 2 * cross_OR) * a_OR).sum(1)
    floor_O = (base_square_O + s * (low_OR * a_OR).sum(1)).detach() * torch.finfo(high).eps
    clear_O = square_O > floor_O
    norm_O = torch.where(clear_O, torch.where(clear_O, square_O, 1.0).sqrt(), floor_O.sqrt())
    norm_O = norm_O if options.through_norm else norm_O.detach()
    gain_O = torch.where(norm_O > 0, magnitude_O / torch.where(norm_O > 0, norm_O, 1.0), 0.0)
    low = F.dropout(x, options.probability) if options.probability > 0 else x
    y = F.linear(x, weight) + s * F.linear(F.linear(low, in_RI.to(dtype)), out_OR.to(dtype))
    # In the gain's own precision: rounded first, it would be off by as much in every output of a row.
    y = y * gain_O
    return (y if bias_O is None else y + bias_O).to(dtype)


def _settle() -> None:
    """Let layers that wait to learn which outputs the model keeps decide; `gnlorp.layer` fills `waiting`."""
    while waiting:
        waiting.pop()()


waiting: list[Any] = []
