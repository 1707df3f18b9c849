"""How a run multiplies: TF32 where a device has it, bf16 by way of fp32 where a processor has no units for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from results.schema import TrainingPlan

ATEN = torch.ops.aten
PRODUCTS = frozenset({ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm, ATEN.linear, ATEN.matmul})


@contextmanager
def products(plan: TrainingPlan) -> Iterator[None]:
    """Multiply as the plan says inside the context, and as before after it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if plan.tf32 else "highest")
    try:
        if plan.bf16_products == "fp32":
            with RoundedOnce():  # type: ignore[no-untyped-call]
                yield
        else:
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class RoundedOnce(TorchDispatchMode):
    """Multiply bf16 matrices in fp32 and round each result once, which is what bf16 units do.

    A product of two bf16 numbers is exact in fp32 and units sum in fp32, so that only the order of the sum differs. A
    processor without such units takes some thirty times as long for the product itself as for fp32's; this takes three
    fp32 copies (operands and result) for as long as one product lasts.
    """

    count = 0
    """Products of bf16 matrices so far."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket not in PRODUCTS or args[0].dtype != torch.bfloat16 or "out_dtype" in kwargs:
            return func(*args, **kwargs)
        self.count += 1
        wide = [each.float() if isinstance(each, torch.Tensor) else each for each in args]
        out = kwargs.pop("out", None)
        result = func.overloadpacket(*wide, **kwargs).bfloat16()
        return result if out is None else out.copy_(result)
