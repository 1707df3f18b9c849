"""Frozen linear layers in four bits, as QLoRA keeps them (arXiv 2305.14314): bitsandbytes' own modules, NF4.

Bytes of an O x I weight with n = O I values: ceil(n / 2) of codes, ceil(n / 64) of block maxima in 8 bits, 4 of the
largest of each 256 of those and 4 of their mean in float32, a table of 16 numbers and one of 256: bitsandbytes keeps a
copy of both with every weight.
"""

from __future__ import annotations

import importlib.util

from torch import nn

from baselines.shared.targets import linear_layers
from suites.measure.replies import unset_fake_temporarily

BLOCK, SECOND_BLOCK = 64, 256


def keep_in_four_bits(model: nn.Module) -> None:
    """Replace every linear layer of the backbone, which is where `load_in_4bit` does, by one of four bits.

    Embeddings, norms and head stay, as do the experts of a mixture, which are no linear layers.

    Raises:
        ValueError: bitsandbytes is not installed, or the model has no linear layer.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("weights in 4 bits need bitsandbytes, which is not installed: pip install 'gnlorp[eight-bit]'")
    layers = linear_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__}: has no linear layer in its backbone to keep in 4 bits")
    for name, linear in layers.items():
        model.set_submodule(name, four_bits(linear))
    # peft asks for it before it puts its adapters of four bits in place.
    model.is_loaded_in_4bit = True  # type: ignore[assignment]


def four_bits(linear: nn.Linear) -> nn.Module:
    """Return bitsandbytes' layer of four bits with the weight of a linear one, its maxima and tables as buffers.

    Its own `Params4bit` cannot be made of a tensor without values; an ordinary parameter that says the same stands in.
    """
    from bitsandbytes.functional import create_dynamic_map, name2qmap, quantize_4bit
    from bitsandbytes.nn.modules import Linear4bit

    dtype = linear.weight.dtype
    # The library keeps this table for good: it must have values, whatever is traced.
    with unset_fake_temporarily():
        name2qmap.setdefault("dynamic", create_dynamic_map())
        made = Linear4bit(linear.in_features, linear.out_features, False, dtype, quant_type="nf4", device="meta")
    packed, state = quantize_4bit(linear.weight.detach(), compress_statistics=True, quant_type="nf4")
    weight = nn.Parameter(packed, requires_grad=False)
    for said, value in (("quant_state", state), ("compress_statistics", True), ("quant_type", "nf4")):
        setattr(weight, said, value)
    made.weight, made.bias, made.quant_state = weight, linear.bias, state
    tables = {"absmax": state.absmax, "offset": state.offset, "second_absmax": state.state2.absmax}
    for name, tensor in (tables | {"code": state.code, "second_code": state.state2.code}).items():
        made.register_buffer(name, tensor)
    return made


def four_bit_bytes(shape: tuple[int, int]) -> int:
    """Return the bytes that a weight takes so."""
    values = shape[0] * shape[1]
    maxima = -(-values // BLOCK)
    return -(-values // 2) + maxima + 4 * -(-maxima // SECOND_BLOCK) + 4 + 4 * (16 + 256)
