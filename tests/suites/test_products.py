"""How matrices are multiplied: TF32 for the run alone, bf16 by way of fp32 as units do it, only where it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from results.schema import TrainingPlan
from suites.run.execute import execute
from suites.run.products import RoundedOnce, products
from suites.suite import Runtime

PLAN = TrainingPlan(steps=1, batch_size=1, learning_rate=1e-3)
FORMS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "mm": (torch.mm, ((7, 300), (300, 5))),
    "addmm": (torch.addmm, ((5,), (7, 300), (300, 5))),
    "addmm, scaled": (lambda *args: torch.addmm(*args, beta=0.5, alpha=-2.0), ((7, 5), (7, 300), (300, 5))),
    "bmm": (torch.bmm, ((3, 7, 300), (3, 300, 5))),
    "baddbmm": (torch.baddbmm, ((3, 7, 5), (3, 7, 300), (3, 300, 5))),
    "linear": (functional.linear, ((3, 7, 300), (5, 300), (5,))),
    "matmul": (torch.matmul, ((3, 7, 300), (300, 5))),
    "out": (lambda a, b: torch.mm(a, b, out=torch.empty(7, 5, dtype=a.dtype)), ((7, 300), (300, 5))),
}


def quiet(step: int, loss: float) -> None:
    """Report nothing."""


def test_tf32_is_set_for_the_run_alone() -> None:
    before = torch.get_float32_matmul_precision()
    with products(PLAN.model_copy(update={"tf32": True})):
        assert torch.get_float32_matmul_precision() == "high"
    with products(PLAN):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("inference", [False, True], ids=["autograd", "inference"])
@pytest.mark.parametrize("form", FORMS)
def test_a_product_is_the_exact_one_rounded_once(form: str, inference: bool) -> None:
    torch.manual_seed(0)
    call, shapes = FORMS[form]
    given = [torch.randn(shape).bfloat16() for shape in shapes]
    with torch.inference_mode(inference), products(PLAN.model_copy(update={"bf16_products": "fp32"})):
        found = call(*given)
    assert found.dtype == torch.bfloat16
    if form == "out":
        call = torch.mm
    exact = call(*[each.double() for each in given])
    # Sums in fp32 are off by up to 300 times 6e-8 of the terms: some results fall on the other side of a rounding.
    assert (found == exact.bfloat16()).double().mean() > 0.97
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-4)


def test_gradients_go_by_the_same_way() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(7, 300).bfloat16().requires_grad_(), torch.randn(300, 5).bfloat16().requires_grad_()
    with RoundedOnce():
        (left @ right).float().square().sum().backward()
    upstream = (2 * (left.detach().float() @ right.detach().float()).bfloat16().float()).bfloat16().float()
    assert left.grad is not None
    assert torch.equal(left.grad, (upstream @ right.detach().float().T).bfloat16())


def test_other_numbers_are_multiplied_as_ever() -> None:
    left, right = torch.randn(7, 300), torch.randn(300, 5)
    with RoundedOnce():
        assert torch.equal(left @ right, torch.mm(left, right))
        assert (left.double() @ right.double()).dtype == torch.float64


def test_a_run_so_multiplied_ends_near_the_native_one(make_plan: Any, runtime: Runtime) -> None:
    given = {"precision": "bf16", "bf16_updates": "kahan"}
    native, wide = (execute(make_plan(**given, bf16_products=way), runtime, None, quiet) for way in ("native", "fp32"))
    assert (wide.status, wide.error) == ("ok", None)
    assert wide.plan_hash != native.plan_hash
    assert [p.loss for p in wide.curve] == pytest.approx([p.loss for p in native.curve], rel=0.02)
    assert wide.memory is not None
    assert native.memory is not None
    assert wide.memory.step_peak == native.memory.step_peak


@pytest.mark.parametrize("settings", [{"precision": "fp32"}, {"precision": "bf16", "compile": True}])
def test_where_it_says_nothing_it_is_refused(make_plan: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"bf16_products 'fp32' .*nearest allowed value: native"):
        make_plan(bf16_products="fp32", **settings)
