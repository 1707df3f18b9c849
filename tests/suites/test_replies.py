"""What operators return for tensors without values: what is remembered equals what torch says when asked anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from suites.measure import replies
from suites.measure.predict import without_values
from suites.measure.replies import FakeTensor, Replies, unset_fake_temporarily


def described(value: object) -> object:
    """Return all of a result but its values."""
    if isinstance(value, Tensor):
        whole = value.untyped_storage().nbytes()
        return value.shape, value.stride(), value.dtype, value.device, value.storage_offset(), whole
    return [described(each) for each in value] if isinstance(value, (tuple, list)) else value


OPERATORS: dict[str, Callable[[Tensor], Any]] = {
    "product": lambda x: x @ x.T,
    "product_of_a_transpose": lambda x: torch.mm(x.T, x),
    "added": lambda x: torch.addmm(x, x, x, alpha=0.5),
    "sum_in_another_dtype": lambda x: x.sum(0, dtype=torch.float64),
    "several_results": lambda x: torch.max(x, dim=1),
    "native_layer_norm": lambda x: torch.native_layer_norm(x, [x.shape[1]], None, None, 1e-5),
    "softmax": lambda x: x.softmax(-1),
    "padded_strides": lambda x: torch.empty_like(x.T) + 1,
    "expanded": lambda x: x[:1].expand(x.shape[1], -1) * 2,
    "scalar_of_no_dimension": lambda x: x.mean(),
    "cast": lambda x: x.to(torch.bfloat16),
    "same_dtype": lambda x: x.to(x.dtype),
    "index": lambda x: x[torch.tensor([0, 1])],
    "concatenated": lambda x: torch.cat([x, x]),
    "split": lambda x: x.split(2),
    "viewed": lambda x: x.reshape(-1)[3:],
    "no_rows": lambda x: x[:0] @ x,
    "comparison": lambda x: x > 0,
    "chosen": lambda x: torch.where(x > 0, x, 0.0),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_second_result_is_like_the_first_and_like_a_real_one(name: str) -> None:
    operator = OPERATORS[name]
    with without_values():
        x = torch.randn(4, 4)
        first, second = operator(x), operator(x)
        assert described(first) == described(second)
        mine, again = (each[0] if isinstance(each, (tuple, list)) else each for each in (first, second))
        assert (
            mine is again
            or mine is x
            or mine.untyped_storage()._cdata != again.untyped_storage()._cdata
            or (mine.untyped_storage()._cdata == x.untyped_storage()._cdata)
        )
        said = described(second)
    real = described(operator(torch.randn(4, 4)))
    assert said == real


def test_what_is_written_into_comes_back_itself() -> None:
    with without_values():
        x, out = torch.randn(4, 4), torch.randn(4, 4)
        for _ in range(2):
            assert x.mul_(2) is x
            assert torch.mm(x, x, out=out) is out
            assert torch.addcmul(x, x, x, out=x) is x


def test_a_result_that_is_resized_is_asked_for_every_time() -> None:
    with without_values():
        x = torch.randn(4, 4)
        for _ in range(2):
            out = torch.empty(0)
            torch.mm(x, x, out=out)
            assert out.shape == (4, 4)


def test_views_share_memory_and_numbers_of_other_types_are_other_questions() -> None:
    with without_values():
        x, n = torch.randn(4, 4), torch.ones(3, dtype=torch.int64)
        for _ in range(2):
            assert x.T[1:].untyped_storage()._cdata == x.untyped_storage()._cdata
            assert [(n + 1).dtype, (n + 1.0).dtype, (n * True).dtype] == [torch.int64, torch.float32, torch.int64]


def test_the_default_dtype_is_part_of_the_question() -> None:
    found = []
    for kind in (torch.float32, torch.float64):
        torch.set_default_dtype(kind)
        try:
            with without_values():
                n = torch.ones(3, dtype=torch.int64)
                found += [(n / 2).dtype, (n / 2).dtype]
        finally:
            torch.set_default_dtype(torch.float32)
    assert found == [torch.float32, torch.float32, torch.float64, torch.float64]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_made_while_the_mode_is_out_of_the_way_is_no_tensor_of_it(device: str) -> None:
    with without_values():
        for _ in range(2):
            assert type(torch.empty(3, 5, device=device)) is FakeTensor
            with unset_fake_temporarily():
                assert type(torch.empty(3, 5, device=device)) is Tensor


def test_gradients_flow_through_remembered_results() -> None:
    with without_values():
        layer = nn.Linear(4, 3)
        x = torch.randn(2, 4, requires_grad=True)
        for _ in range(2):
            layer(x).relu().square().sum().backward()
        assert x.grad is not None
        assert x.grad.shape == (2, 4)
        assert layer.weight.grad is not None
        assert x._version == 0
        x.grad.add_(1)
        assert x.grad._version > 0


def test_an_operator_is_asked_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replies, "_known", {})
    monkeypatch.setattr(replies, "MOST", 4)
    with without_values():
        x = torch.randn(9, 5)
        before = len(Replies._known)
        for _ in range(3):
            x.T @ x
        assert len(Replies._known) == before + 1
        # Beyond the most that are kept, all are forgotten, and results stay what they are.
        for size in range(1, 9):
            assert (x[:size] + 1).shape == (size, 5)
        assert len(Replies._known) <= 4
