"""The frozen weight in few bits: its values are those of the paper."""

from __future__ import annotations

import pytest
import torch

from gnlorp.base_weight import BaseWeight, normal_float, quantise

PRINTED = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def test_the_sixteen_values_are_those_that_qlora_prints() -> None:
    # arXiv 2305.14314, appendix E.
    found = normal_float(torch.float32, torch.device("cpu"))
    torch.testing.assert_close(found, torch.tensor(PRINTED), rtol=0, atol=2e-7)
    assert (found.diff() > 0).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_in_low_precision_are_those_of_float32_rounded_once(bits, dtype):
    torch.manual_seed(0)
    base = BaseWeight(*quantise(torch.randn(40, 131), bits), 131)
    rows = slice(3, 40)
    assert torch.equal(base.rows(rows, dtype), base.rows(rows, torch.float32).to(dtype))
