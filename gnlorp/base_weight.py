"""The frozen base weight W0: a matrix, or 8 or 4 bits a value with scales, read a chunk of rows at a time.

O out, I in, T tokens, c a chunk of rows. 8 bits: int8 times a scale a row. 4 bits: two of 16 values in a byte, times a
scale a block of `BLOCK` values of a row; the 16 values are NormalFloat, QLoRA (arXiv 2305.14314), appendix E.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Values in one chunk of rows: what backward makes beyond its results is a few of these at a time."""
BLOCK = 64
"""Values of a row that share a scale in 4 bits."""
OFFSET = 0.9677083
"""Probability below the largest value in 4 bits: half a step of 1/30 and of 1/32 from the end, on average."""


def spans(rows: int, width: int) -> Iterator[slice]:
    """Yield equal slices of `rows` rows of `width` values, each of at most `CHUNK_ELEMENTS` values or one row; of no
    rows one empty slice.

    Raises: ValueError where `CHUNK_ELEMENTS` was set below 1.
    """
    if CHUNK_ELEMENTS < 1:
        raise ValueError(f"CHUNK_ELEMENTS {CHUNK_ELEMENTS}: must be at least 1 (nearest allowed value: 1)")
    chunks = max(1, -(-rows // max(1, CHUNK_ELEMENTS // max(1, width))))
    step = max(1, -(-rows // chunks))
    for start in range(0, max(rows, 1), step):
        yield slice(start, min(rows, start + step))


alike_spans = spans
"""The same, for loops each of whose rounds but the first and the last does what the one before did."""
token_spans = spans
"""The same, for loops over tokens whose rounds leave nothing behind: how many there are depends on the batch alone."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which norms are summed: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)


def quantised_shapes(shape: tuple[int, int], bits: int) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return the shapes of what `quantise` makes of a weight (O, I): bytes, and scales."""
    outputs, inputs = shape
    return (shape, (outputs,)) if bits == 8 else ((outputs, -(-inputs // 2)), (outputs, -(-inputs // BLOCK)))


def quantise(weight_OI: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return W0 rounded to the nearest values that `bits` (8 or 4) can say, and float32 scales; see the module.

    8 bits: each row over its largest magnitude, rounded to 1/127 of it. 4 bits: each block over its largest one.
    """
    (width, scales) = (shape[1:] for shape in quantised_shapes((weight_OI.shape[0], weight_OI.shape[1]), bits))
    rows, device = len(weight_OI), weight_OI.device
    bytes_O = torch.empty(rows, *width, dtype=torch.int8 if bits == 8 else torch.uint8, device=device)
    scale_O = torch.empty(rows, *scales, dtype=torch.float32, device=device)
    for c in alike_spans(*weight_OI.shape):
        row_cI = weight_OI[c].float()
        if bits == 8:
            scale_O[c] = row_cI.abs().amax(1) / 127
            row_cI = row_cI / torch.where(scale_O[c] > 0, scale_O[c], 1.0)[:, None]
            bytes_O[c] = row_cI.round_().clamp_(-127, 127).to(torch.int8)
        else:
            bytes_O[c], scale_O[c] = _four_bits(row_cI)
    return bytes_O, scale_O


def normal_float(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the 16 values of 4 bits, rising from -1 to 1: quantiles of a normal distribution, eight of them above 0.

    By operators alone: a constant made from numbers has no moment at which a trace sees it begin.
    """
    above, below = (
        torch.special.ndtri(torch.linspace(OFFSET, 0.5, count, dtype=torch.float64, device=device)[:-1])
        for count in (9, 8)
    )
    values: Tensor = torch.cat([-below, torch.zeros_like(above[:1]), above.flip(0)]) / above[0]
    return values.to(dtype)


def _four_bits(row_cI: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(row_cI, (0, -row_cI.shape[1] % BLOCK)).view(len(row_cI), -1, BLOCK)
    scale = padded.abs().amax(2)
    values = normal_float(row_cI.dtype, row_cI.device)
    middles = (values[1:] + values[:-1]) / 2
    shares = (padded / torch.where(scale > 0, scale, 1.0)[:, :, None]).flatten(1)
    codes = torch.bucketize(shares, middles, out_int32=True).to(torch.uint8)
    packed = codes[:, ::2] | (codes[:, 1::2] << 4)
    return packed[:, : -(-row_cI.shape[1] // 2)], scale


def row_square_norms(weight_OI: Tensor, scale_O: Tensor | None = None, inputs: int | None = None) -> Tensor:
    """Return the squared norm of each row of W0, (O,), summed in at least float32; see `BaseWeight`."""
    base, dtype = BaseWeight(weight_OI, scale_O, inputs), accumulation_dtype(weight_OI.dtype)
    square_O = torch.empty(len(weight_OI), dtype=dtype, device=weight_OI.device)
    for c in base.chunks(dtype):
        square_O[c] = torch.linalg.vector_norm(base.rows(c, dtype), dim=1).square_()
    return square_O


@dataclass(frozen=True)
class BaseWeight:
    """W0 as it is kept, read in another dtype a chunk of rows at a time; `inputs` is I, which 4 bits do not say."""

    weight_OI: Tensor
    scale_O: Tensor | None
    inputs: int | None = None

    def rows(self, c: slice, dtype: torch.dtype) -> Tensor:
        """Return rows of W0, (c, I)."""
        if self.scale_O is None:
            return self.weight_OI[c].to(dtype)
        # Scales keep their precision: a rounded one would change the norm of a whole row or block.
        if self.scale_O.ndim == 1:
            return self.weight_OI[c].to(dtype).mul_(self.scale_O[c, None])
        packed, high = self.weight_OI[c], accumulation_dtype(dtype)
        codes = torch.stack([packed & 15, packed >> 4], 2).flatten(1)[:, : self.inputs]
        values = normal_float(high, packed.device)[codes.int()]
        return values.mul_(self.scale_O[c].repeat_interleave(BLOCK, 1)[:, : self.inputs]).to(dtype)

    def chunks(self, dtype: torch.dtype) -> Iterator[slice]:
        """Yield the rows that are read at once: all of them where nothing has to be converted."""
        if self._needs_no_cast(dtype):
            yield slice(0, self.weight_OI.shape[0])
        else:
            yield from alike_spans(self.weight_OI.shape[0], self._width)

    def _needs_no_cast(self, dtype: torch.dtype) -> bool:
        return self.scale_O is None and self.weight_OI.dtype == dtype

    @property
    def _width(self) -> int:
        return self.inputs or self.weight_OI.shape[1]

    def apply(self, x: Tensor, bias_O: Tensor | None) -> Tensor:
        """Return x W0^T + b, (..., O), in x's dtype."""
        bias_O = None if bias_O is None else bias_O.to(x.dtype)
        outputs = self.weight_OI.shape[0]
        if self._needs_no_cast(x.dtype) or len(list(spans(outputs, self._width))) == 1:
            return F.linear(x, self.rows(slice(0, outputs), x.dtype), bias_O)
        y = x.new_empty(*x.shape[:-1], outputs)
        for c in self.chunks(x.dtype):
            y[..., c] = F.linear(x, self.rows(c, x.dtype), None if bias_O is None else bias_O[c])
        return y

    def pull(self, grad_TO: Tensor, into_TI: Tensor, add: bool) -> None:
        """Write grad W0 into `into_TI`, or add it."""
        for c in self.chunks(grad_TO.dtype):
            add_product(into_TI, grad_TO[:, c], self.rows(c, grad_TO.dtype), first=not add and c.start == 0)


def add_product(into: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """Write a product of matrices into a tensor, or, after the first, add it."""
    if first:
        torch.mm(left, right, out=into)
    else:
        into.addmm_(left, right)
