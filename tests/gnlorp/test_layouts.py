"""Parameters that do not lie in memory in the order of their indices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gnlorp import GradNormLoRPAdamW


def sliced(shape):
    return torch.zeros(shape[0], *(2 * length for length in shape[1:]))[tuple(slice(length) for length in shape)]


LAYOUTS = {
    "slice": lambda shape: sliced(shape),
    "strided": lambda shape: torch.zeros(*shape[:-1], shape[-1] * 3)[..., ::3],
    "transposed": lambda shape: torch.zeros(shape[::-1]).permute(*range(len(shape))[::-1]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "options"), [
    ((70, 80), {}), ((70, 80), {"state_bits": 8}), ((3, 4, 5), {}), ((9, 1), {}),
    ((70, 80), {"projection_rank": 3}), ((70, 80), {"projection_rank": 3, "side": "both", "moments": "rotate"}),
])  # fmt: skip
def test_a_parameter_that_is_not_contiguous_is_followed_by_its_indices(layout, shape, options):
    if options.get("state_bits") == 8:
        pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    start = torch.randn(shape)
    weight, flat = nn.Parameter(LAYOUTS[layout](shape).copy_(start)), nn.Parameter(start.clone())
    around = weight.detach().untyped_storage()
    inside = weight.detach().clone()
    optimizers = [GradNormLoRPAdamW([each], lr=0.1, refresh_gap=2, **options) for each in (weight, flat)]
    for _ in range(4):
        grad = torch.randn(shape)
        for each, optimizer in zip((weight, flat), optimizers, strict=True):
            each.grad = grad.clone()
            optimizer.step()
    assert torch.allclose(weight, flat, atol=1e-5)
    assert not torch.equal(weight, inside)
    for name, moment in optimizers[1].state[flat].items():
        if isinstance(moment, torch.Tensor) and moment.dtype != torch.uint8:
            assert torch.allclose(optimizers[0].state[weight][name], moment, atol=1e-5), name
    weight.detach().zero_()
    assert not torch.tensor(around, dtype=torch.uint8).any()


@pytest.mark.parametrize("bits", [32, 8])
def test_moments_survive_a_change_of_memory_format_and_a_resume_in_another(bits):
    if bits == 8:
        pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    start, grads = torch.randn(16, 16, 5, 5), [torch.randn(16, 16, 5, 5) for _ in range(6)]

    def train(first, second, resume):
        weight = nn.Parameter(start.clone(memory_format=first))
        optimizer = GradNormLoRPAdamW([weight], lr=0.1, state_bits=bits)
        for index, grad in enumerate(grads):
            if index == 3 and resume:
                state = optimizer.state_dict()
                weight = nn.Parameter(weight.detach().contiguous(memory_format=second))
                optimizer = GradNormLoRPAdamW([weight], state_bits=bits)
                optimizer.load_state_dict(state)
            elif index == 3:
                weight.data = weight.data.contiguous(memory_format=second)
            weight.grad = grad.contiguous(memory_format=torch.channels_last)
            optimizer.step()
        return weight.detach()

    plain, last = torch.contiguous_format, torch.channels_last
    wanted = train(plain, plain, False)
    for first, second in ((last, last), (plain, last), (last, plain)):
        for resume in (False, True):
            assert torch.allclose(train(first, second, resume), wanted, atol=1e-6), (first, second, resume)
