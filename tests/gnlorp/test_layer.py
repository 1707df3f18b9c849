"""The layer: its output, its two gradient rules, its memory, and where it must work."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from gnlorp import NormLowRankLinear
from gnlorp.reference import reference_weight
from gnlorp.weight_norm import norm_low_rank_linear, product_norms, row_square_norms

RULES = ["full", "detached"]


def moved(inputs=24, outputs=17, rank=5, bias=True, dtype=torch.float32, rule="full", seed=0, **options):
    """Return a layer away from its start, where A is not 0 and m is not |W0|."""
    torch.manual_seed(seed)
    layer = NormLowRankLinear(
        nn.Linear(inputs, outputs, bias=bias, dtype=dtype), rank, 2.0 * rank, norm_gradient=rule, **options
    )
    with torch.no_grad():
        layer.factor_out.normal_(std=0.1)
        layer.magnitude.mul_(1 + 0.2 * torch.randn(outputs))
    return layer


def by_reference(layer: NormLowRankLinear, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Return output and all gradients in double precision, with V and W' formed."""
    names = ["factor_out", "factor_in", "magnitude"] + (["bias"] if layer.bias is not None else [])
    leaves = {name: getattr(layer, name).detach().double().requires_grad_() for name in names}
    x = x.detach().double().requires_grad_()
    weight = reference_weight(
        layer.base_weight.double(), leaves["factor_out"], leaves["factor_in"], leaves["magnitude"],
        layer.scaling, layer.norm_gradient == "full",
    )  # fmt: skip
    y = nn.functional.linear(x, weight, leaves.get("bias"))
    y.backward(grad.double())
    return {"y": y.detach(), "x": x.grad, **{name: leaf.grad for name, leaf in leaves.items()}}


def by_layer(layer: NormLowRankLinear, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.backward(grad)
    return {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in layer.named_parameters() if p.requires_grad}}


def relative(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (7,), (3, 7), (2, 3, 7), (0,)])
def test_the_start_is_bit_equal_to_the_base_layer(dtype, bias, lead):
    torch.manual_seed(0)
    base = nn.Linear(96, 40, bias=bias, dtype=dtype)
    layer = NormLowRankLinear(copy.deepcopy(base), 8, 16.0)
    x = torch.randn(*lead, 96, dtype=dtype)
    assert torch.equal(layer(x), base(x))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("inputs", "outputs", "rank", "tokens"), [(24, 17, 5, 33), (64, 128, 8, 9), (96, 48, 1, 200), (40, 40, 40, 30)]
)
def test_output_and_gradients_equal_double_precision(rule, bias, inputs, outputs, rank, tokens):
    layer = moved(inputs, outputs, rank, bias, rule=rule)
    x, grad = torch.randn(tokens, inputs), torch.randn(tokens, outputs)
    wanted, got = by_reference(layer, x, grad), by_layer(layer, x, grad)
    assert got.keys() == wanted.keys()
    for name in wanted:
        assert relative(got[name], wanted[name]) < 1e-5, name


def test_the_rules_differ():
    x, grad = torch.randn(9, 24), torch.randn(9, 17)
    full, detached = (by_layer(moved(rule=rule), x, grad) for rule in RULES)
    assert torch.equal(full["y"], detached["y"])
    assert relative(full["factor_out"], detached["factor_out"]) > 1e-2


@pytest.mark.parametrize("rule", RULES)
def test_gradients_at_the_start_equal_double_precision(rule):
    torch.manual_seed(1)
    layer = NormLowRankLinear(nn.Linear(24, 17), 4, 8.0, norm_gradient=rule)
    x, grad = torch.randn(11, 24), torch.randn(11, 17)
    wanted, got = by_reference(layer, x, grad), by_layer(layer, x, grad)
    assert got["factor_in"].abs().max() == 0
    for name in ("x", "factor_out", "magnitude", "bias"):
        assert relative(got[name], wanted[name]) < 1e-5, name


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_low", [True, False])
def test_gradcheck_in_double(bias, with_low):
    layer = moved(6, 5, 3, bias, torch.float64)
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    low = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True) if with_low else None

    def run(x, low, b, a, c, m):
        return norm_low_rank_linear(x, low, layer.base_weight, b, a, c, m, layer.base_square, layer.scaling, True)

    assert torch.autograd.gradcheck(
        run, (x, low, layer.bias, layer.factor_out, layer.factor_in, layer.magnitude), atol=1e-7
    )


def test_the_full_gradient_is_orthogonal_to_the_direction():
    layer = moved(dtype=torch.float64, rank=17)
    x, grad = torch.randn(50, 24, dtype=torch.float64), torch.randn(50, 17, dtype=torch.float64)
    got = by_layer(layer, x, grad)
    direction = layer.base_weight + layer.scaling * layer.factor_out @ layer.factor_in
    pulled = grad.T @ x
    gain = layer.magnitude / direction.norm(dim=1)
    unit = direction / direction.norm(dim=1, keepdim=True)
    direction_grad = gain[:, None] * (pulled - (pulled * unit).sum(1, keepdim=True) * unit)
    assert (direction_grad * unit).sum(1).abs().max() < 1e-12 * direction_grad.abs().max()
    assert relative(got["factor_out"], layer.scaling * direction_grad @ layer.factor_in.T) < 1e-12
    assert relative(got["factor_in"], layer.scaling * layer.factor_out.T @ direction_grad) < 1e-12
    layer.norm_gradient = "detached"
    loose = by_layer(layer, x, grad)
    assert relative(loose["factor_out"], layer.scaling * (gain[:, None] * pulled) @ layer.factor_in.T) < 1e-12


def test_a_rank_near_the_number_of_tokens_gives_the_same_gradients():
    layer = moved(32, 24, 16)
    x, grad = torch.randn(41, 32), torch.randn(41, 24)
    wanted, got = by_reference(layer, x, grad), by_layer(layer, x, grad)
    for name in wanted:
        assert relative(got[name], wanted[name]) < 1e-5, name


def test_product_norms_equal_direct_norms_through_cancellation():
    torch.manual_seed(0)
    weight, out = torch.randn(30, 20), torch.randn(30, 20)
    inner = torch.linalg.qr(torch.randn(20, 20)).Q
    for remaining in (1.0, 1e-1, 1e-2):
        # A B = -(1 - remaining) W0, so that V = remaining * W0.
        out = -(1 - remaining) * weight @ inner.T
        norm, inverse, _ = product_norms(row_square_norms(weight), weight, out, inner, 1.0)
        direct = (weight.double() + out.double() @ inner.double()).norm(dim=1)
        assert ((norm - direct).abs() / direct).max() < 2e-6 / remaining**2
        assert ((inverse * direct**2 - 1).abs()).max() < 4e-6 / remaining**2


def test_norms_that_cancel_to_nothing_are_clamped_and_have_no_gradient():
    torch.manual_seed(0)
    weight = torch.randn(30, 20)
    inner = torch.linalg.qr(torch.randn(20, 20)).Q
    norm, inverse, _ = product_norms(row_square_norms(weight), weight, -weight @ inner.T, inner, 1.0)
    assert torch.isfinite(norm).all()
    assert (norm > 0).all()
    assert torch.isfinite(inverse).all()
    assert (norm < 1e-2 * weight.norm(dim=1)).all()


def test_a_zero_row_stays_zero_and_finite():
    base = nn.Linear(12, 6)
    with torch.no_grad():
        base.weight[2] = 0
    layer = NormLowRankLinear(base, 3, 6.0)
    got = by_layer(layer, torch.randn(5, 12), torch.randn(5, 6))
    assert all(torch.isfinite(value).all() for value in got.values())
    assert torch.equal(got["y"][:, 2], base.bias[2].expand(5))


class Shapes(TorchDispatchMode):
    """Records the size of every floating-point tensor that an operator returns, by storage."""

    def __init__(self):
        super().__init__()
        self.sizes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        for tensor in [made] if isinstance(made, Tensor) else []:
            if tensor.untyped_storage().data_ptr() not in given:
                self.sizes.add(tuple(tensor.shape))
        return made


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_the_weights_size_in_a_training_step(rule, dtype):
    layer = moved(160, 224, 4, dtype=dtype, rule=rule)
    x = torch.randn(9, 160, dtype=dtype, requires_grad=True)
    with Shapes() as seen:
        layer(x).backward(torch.ones(9, 224, dtype=dtype))
    assert (9, 224) in seen.sizes
    largest = max(torch.Size(size).numel() for size in seen.sizes)
    assert largest <= max(9 * 224, 224 * 4, 160 * 4)
    with Shapes() as seen:
        layer.weight()
    assert (224, 160) in seen.sizes


@pytest.mark.parametrize("rule", RULES)
def test_what_forward_keeps_for_backward(rule):
    layer = moved(64, 96, 4, rule=rule)
    kept: dict[int, Tensor] = {}
    x = torch.randn(10, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        y = layer(x)
    known = {p.data_ptr() for p in layer.parameters()} | {x.data_ptr(), y.data_ptr()}
    extra = sum(t.numel() for pointer, t in kept.items() if pointer not in known)
    vectors = 96 * (2 if rule == "full" else 1)
    assert extra == 10 * 4 + vectors + (96 * 4 if rule == "full" else 0)


def test_low_precision_norms_are_summed_in_float32():
    layer = moved(512, 64, 8, dtype=torch.bfloat16)
    x = torch.randn(16, 512, dtype=torch.bfloat16)
    wanted = nn.functional.linear(
        x.double(),
        reference_weight(
            layer.base_weight.double(), layer.factor_out.double(), layer.factor_in.double(),
            layer.magnitude.double(), layer.scaling, True,
        ),
        layer.bias.double(),
    )  # fmt: skip
    assert layer.magnitude.dtype == torch.float32
    assert relative(layer(x), wanted) < 5e-3
    got = by_layer(layer, x, torch.randn(16, 64, dtype=torch.bfloat16))
    assert got["magnitude"].dtype == torch.float32
    assert got["factor_out"].dtype == torch.bfloat16


@pytest.mark.parametrize("rule", RULES)
def test_bf16_gradients_are_near_double_precision(rule):
    layer = moved(128, 64, 8, dtype=torch.bfloat16, rule=rule)
    x, grad = torch.randn(64, 128, dtype=torch.bfloat16), torch.randn(64, 64, dtype=torch.bfloat16)
    wanted, got = by_reference(layer, x, grad), by_layer(layer, x, grad)
    for name in wanted:
        assert relative(got[name], wanted[name]) < 2e-2, name


@pytest.mark.parametrize("rule", RULES)
def test_autocast_computes_in_bf16_with_float32_gradients(rule):
    layer = moved(128, 64, 8, rule=rule)
    x, grad = torch.randn(32, 128), torch.randn(32, 64)
    wanted = by_reference(layer, x, grad)
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(leaf)
    assert y.dtype == torch.bfloat16
    y.backward(grad.bfloat16())
    assert relative(y, wanted["y"]) < 1e-2
    for name in ("factor_out", "factor_in", "magnitude", "bias"):
        assert getattr(layer, name).grad.dtype == torch.float32
        assert relative(getattr(layer, name).grad, wanted[name]) < 2e-2, name
    assert leaf.grad.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_gives_the_same_gradients(reentrant):
    torch.manual_seed(0)
    model = nn.Sequential(moved(16, 32, 4, dropout=0.2), nn.GELU(), moved(32, 8, 4, dropout=0.2))
    x, grad = torch.randn(5, 16, requires_grad=True), torch.randn(5, 8)
    found = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        model.zero_grad()
        torch.manual_seed(3)
        run(x).backward(grad)
        found.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rank", [4, 16])
def test_compile_gives_the_same_values_in_one_graph(rule, rank):
    torch._dynamo.reset()
    model = nn.Sequential(moved(32, 48, rank, rule=rule), nn.GELU(), moved(48, 32, rank, bias=False, rule=rule))
    x, grad = torch.randn(40, 32), torch.randn(40, 32)
    found = []
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        y.backward(grad)
        found.append([y.detach(), leaf.grad] + [p.grad.clone() for p in model.parameters() if p.requires_grad])
    for eager, compiled in zip(*found, strict=True):
        assert relative(compiled, eager) < 1e-5


def test_dropout_acts_on_the_low_rank_path_in_training_only():
    layer = moved(64, 32, 4, dropout=0.5)
    x = torch.randn(10, 64)
    layer.eval()
    assert relative(layer(x), nn.functional.linear(x, layer.weight(), layer.bias)) < 1e-6
    layer.train()
    torch.manual_seed(5)
    got = layer(x)
    torch.manual_seed(5)
    low = nn.functional.dropout(x, 0.5)
    direction = layer.base_weight + layer.scaling * layer.factor_out @ layer.factor_in
    gain = layer.magnitude / direction.norm(dim=1)
    mixed = x @ layer.base_weight.T + layer.scaling * low @ layer.factor_in.T @ layer.factor_out.T
    assert relative(got, gain * mixed + layer.bias) < 1e-5
    with torch.no_grad():
        layer.factor_out.zero_()
        layer.magnitude.copy_(layer.base_weight.norm(dim=1))
    assert relative(layer(x), nn.functional.linear(x, layer.base_weight, layer.bias)) < 1e-6


def test_a_second_backward_through_a_kept_graph_gives_the_same():
    layer = moved()
    y = layer(torch.randn(9, 24))
    grad = torch.randn(9, 17)
    y.backward(grad, retain_graph=True)
    once = layer.factor_in.grad.clone()
    y.backward(grad)
    assert torch.equal(layer.factor_in.grad, 2 * once)


def test_changing_the_output_in_place_is_an_error_not_a_wrong_gradient():
    layer = moved()
    y = layer(torch.randn(9, 24))
    y.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()
