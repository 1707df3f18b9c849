"""The layer: its output, its two gradient rules, its memory, and where it must work."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from gnlorp import NormLowRankLinear, attach, base_weight, dropout
from gnlorp.base_weight import BaseWeight, row_square_norms
from gnlorp.reference import reference_weight
from gnlorp.weight_norm import Options, norm_low_rank_linear, product_norms

RULES = ["full", "detached"]
MODES = ["fast", "least", "auto"]


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
@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("kept", [(False, False), (True, True), (True, False)])
@pytest.mark.parametrize("lead", [(2, 4), (3, 9)])
def test_gradcheck_in_double(bias, probability, kept, lead):
    layer = moved(6, 5, 3, bias, torch.float64)
    x = torch.randn(*lead, 6, dtype=torch.float64, requires_grad=True)
    options = Options(layer.scaling, True, probability, 7, *kept)
    formed = options.forms_weight(x.flatten(0, 1), layer.factor_out)
    assert formed == (lead == (3, 9) and probability == 0 and not kept[0])

    def run(x, b, a, c, m):
        return norm_low_rank_linear(x, x, layer.base_weight, None, b, a, c, m, layer.base_square, options)

    assert torch.autograd.gradcheck(run, (x, layer.bias, layer.factor_out, layer.factor_in, layer.magnitude), atol=1e-7)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("probability", [0.0, 0.25])
@pytest.mark.parametrize("chunk", [1 << 22, 64])
@pytest.mark.parametrize("tokens", [33, 100])
def test_every_mode_equals_the_formed_weight_in_float64(rule, bias, mode, probability, chunk, tokens, monkeypatch):
    monkeypatch.setattr(base_weight, "CHUNK_ELEMENTS", chunk)
    layer = moved(24, 17, 5, bias, torch.float64, rule, dropout=probability, activations=mode)
    x, grad = torch.randn(tokens, 24, dtype=torch.float64), torch.randn(tokens, 17, dtype=torch.float64)
    # With many tokens, and nothing kept, V is formed by chunks of rows.
    assert Options(1.0, True).forms_weight(x, layer.factor_out) == (tokens == 100)
    for _ in range(2):  # "auto" has decided by the second
        torch.manual_seed(3)
        got = by_layer(layer, x, grad)
        torch.manual_seed(3)
        wanted = by_formed_weight(layer, x, grad)
        for name in wanted:
            assert relative(got[name], wanted[name]) < 1e-12, name


def by_formed_weight(layer: NormLowRankLinear, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Return output and gradients by autograd over V, the dropped input made from the seed that the layer draws."""
    names = ["factor_out", "factor_in", "magnitude"] + (["bias"] if layer.bias is not None else [])
    leaves = {name: getattr(layer, name).detach().clone().requires_grad_() for name in names}
    x = x.detach().clone().requires_grad_()
    seed = dropout.draw_seed() if layer.dropout else 0
    chunks = enumerate(base_weight.spans(*x.shape))
    masks = [dropout.kept(x[t].detach(), layer.dropout, seed, index) for index, t in chunks]
    low = x * torch.cat(masks) if layer.dropout else x
    product = leaves["factor_out"] @ leaves["factor_in"]
    norm = (layer.base_weight + layer.scaling * product).norm(dim=1)
    gain = leaves["magnitude"] / (norm if layer.norm_gradient == "full" else norm.detach())
    y = gain * (x @ layer.base_weight.T + layer.scaling * low @ product.T)
    y = y + leaves["bias"] if layer.bias is not None else y
    y.backward(grad)
    return {"y": y.detach(), "x": x.grad, **{name: leaf.grad for name, leaf in leaves.items()}}


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
        norm, inverse = product_norms(row_square_norms(weight), BaseWeight(weight, None), out, inner, 1.0, weight.dtype)
        direct = (weight.double() + out.double() @ inner.double()).norm(dim=1)
        assert ((norm - direct).abs() / direct).max() < 2e-6 / remaining**2
        assert ((inverse * direct**2 - 1).abs()).max() < 4e-6 / remaining**2


def test_norms_that_cancel_to_nothing_are_clamped_and_have_no_gradient():
    torch.manual_seed(0)
    weight = torch.randn(30, 20)
    inner = torch.linalg.qr(torch.randn(20, 20)).Q
    base = BaseWeight(weight, None)
    norm, inverse = product_norms(row_square_norms(weight), base, -weight @ inner.T, inner, 1.0, weight.dtype)
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
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("probability", [0.0, 0.1])
def test_no_tensor_of_the_weights_size_in_a_training_step(rule, dtype, mode, probability, monkeypatch):
    monkeypatch.setattr(base_weight, "CHUNK_ELEMENTS", 2048)
    layer = moved(160, 224, 4, dtype=dtype, rule=rule, activations=mode, dropout=probability)
    x = torch.randn(9, 160, dtype=dtype, requires_grad=True)
    with Shapes() as seen:
        layer(x).backward(torch.ones(9, 224, dtype=dtype))
    assert (9, 224) in seen.sizes
    largest = max(torch.Size(size).numel() for size in seen.sizes)
    assert largest <= max(9 * 224, 224 * 4, 160 * 4, 2048)
    with Shapes() as seen:
        layer.merge()
    assert (224, 160) in seen.sizes


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("probability", [0.0, 0.1])
@pytest.mark.parametrize("mode", MODES)
def test_what_forward_keeps_for_backward(rule, probability, mode):
    layer = moved(64, 96, 4, rule=rule, activations=mode, dropout=probability)
    kept: dict[int, Tensor] = {}
    x = torch.randn(10, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        y = layer(x)
    known = {p.data_ptr() for p in (*layer.parameters(), *layer.buffers())} | {x.data_ptr()}
    extra = sum(t.numel() for pointer, t in kept.items() if pointer not in known)
    vectors = 96 * (0 if rule == "full" and mode != "fast" else 3)
    image = 96 * 4 if rule == "full" else 0
    assert extra == vectors + (10 * 4 + y.numel() + image if mode == "fast" else 0)


class Squared(nn.Module):
    """Two layers: the first one's output is kept by the square anyway, the second one's by nothing."""

    def __init__(self, in_place: bool = False):
        super().__init__()
        self.first, self.second, self.in_place = nn.Linear(6, 8), nn.Linear(8, 5), in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.in_place:
            y += 1
        return self.second(y.square()) + 1


def test_auto_keeps_the_outputs_that_the_model_keeps_and_says_so_in_its_state():
    torch.manual_seed(0)
    model = Squared()
    attach(model, ["first", "second"], 2, 4.0)
    model(torch.randn(3, 6)).sum().backward()
    assert (model.first._keeps_output, model.second._keeps_output) == (True, False)
    again = Squared()
    attach(again, ["first", "second"], 2, 4.0)
    assert again.first._keeps_output is None
    again.load_state_dict(model.state_dict())
    assert (again.first._keeps_output, again.second._keeps_output) == (True, False)
    older = {name: value for name, value in model.state_dict().items() if not name.endswith("_extra_state")}
    again.load_state_dict(older)
    assert again.first._keeps_output is None


def test_auto_never_keeps_an_output_that_is_changed_in_place():
    torch.manual_seed(0)
    model = Squared(in_place=True)
    plain = copy.deepcopy(model)
    attach(model, ["first", "second"], 2, 4.0)
    x = torch.randn(3, 6)
    for _ in range(2):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        model(leaf).sum().backward()
        assert model.first._keeps_output is False
    wanted = x.clone().requires_grad_()
    plain(wanted).sum().backward()
    assert relative(leaf.grad, wanted.grad) < 1e-6
    assert relative(model.first.bias.grad, plain.first.bias.grad) < 1e-6


def test_a_layer_before_an_activation_in_place_trains():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(inplace=True), nn.Linear(32, 2))
    attach(model, ["0"], 4, 8.0)
    for _ in range(2):
        model(torch.randn(4, 16)).sum().backward()
    assert model[0].factor_out.grad.abs().sum() > 0


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
@pytest.mark.parametrize("mode", MODES)
def test_activation_checkpointing_gives_the_same_gradients(reentrant, mode):
    torch.manual_seed(0)
    options = {"dropout": 0.2, "activations": mode}
    model = nn.Sequential(moved(16, 32, 4, **options), nn.GELU(), moved(32, 8, 4, **options))
    x, grad = torch.randn(5, 16, requires_grad=True), torch.randn(5, 8)
    found = []
    model(x).backward(grad)  # "auto" has decided by now
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
    found: list[list[Tensor]] = []
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
    assert relative(layer(x), nn.functional.linear(x, layer.weight, layer.bias)) < 1e-6
    layer.train()
    with torch.no_grad():
        layer.factor_out.zero_()
        layer.magnitude.copy_(layer.base_weight.norm(dim=1))
    assert relative(layer(x), nn.functional.linear(x, layer.base_weight, layer.bias)) < 1e-6


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_its_mean(probability):
    keep = dropout.kept(torch.ones(1000, 1000), probability, 1, 0)
    share = (keep > 0).double().mean().item()
    assert abs(share - (1 - probability)) < 5 * (probability * (1 - probability) / 1e6) ** 0.5 + 1 / dropout.QUANTA
    assert abs(keep.double().mean().item() - 1) < 5 * (probability / (1 - probability) / 1e6) ** 0.5 + 1e-4
    assert torch.equal(keep, dropout.kept(torch.ones(1000, 1000), probability, 1, 0))


@pytest.mark.parametrize("probability", [1 - 2**-20, 1 - 2**-17])
def test_a_dropout_just_below_one_is_the_largest_there_is(probability):
    assert dropout.rounded(probability) == 1 - 1 / dropout.QUANTA
    keep = dropout.kept(torch.ones(1000, 1000), probability, 1, 0)
    assert 0 < (keep > 0).sum() < 60
    assert keep.max() == dropout.QUANTA


def test_the_streams_of_two_layers_are_independent():
    torch.manual_seed(0)
    ones = torch.ones(500, 500)
    first, second = (dropout.kept(ones, 0.5, dropout.draw_seed(), 0) > 0 for _ in range(2))
    agreeing = (first == second).double().mean().item()
    assert abs(agreeing - 0.5) < 5 * 0.5 / 500
    after = dropout.kept(ones, 0.5, 5, 1) > 0
    assert abs((after == (dropout.kept(ones, 0.5, 5, 0) > 0)).double().mean().item() - 0.5) < 5 * 0.5 / 500


def test_dropout_without_a_generator_on_the_device_is_refused():
    with pytest.raises(RuntimeError, match="set dropout to 0"):
        dropout.kept(torch.ones(3, 3, device="meta"), 0.1, 0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_accumulation_adds_the_gradients_of_the_parts(mode):
    layer = moved(dtype=torch.float64, activations=mode)
    x, grad = torch.randn(12, 24, dtype=torch.float64), torch.randn(12, 17, dtype=torch.float64)
    whole = by_layer(layer, x, grad)
    layer.zero_grad()
    for part in (slice(0, 5), slice(5, 12)):
        layer(x[part]).backward(grad[part])
    for name in ("factor_out", "factor_in", "magnitude", "bias"):
        assert relative(getattr(layer, name).grad, whole[name]) < 1e-12, name


def test_layers_that_read_one_input_share_its_cast_under_autocast():
    torch.manual_seed(0)
    q, k = (NormLowRankLinear(nn.Linear(32, 32), 4, 8.0) for _ in range(2))
    kept = set()
    x = torch.randn(5, 32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.add(t.data_ptr()) or t, lambda t: t):
            q(x) + k(x)
        assert x._gnlorp_cast[1].data_ptr() in kept
        assert not any(pointer == x.data_ptr() for pointer in kept)
        first = q(x).float()
        with torch.no_grad():
            x.mul_(2)
        assert relative(q(x).float() - q.bias, 2 * (first - q.bias)) < 2e-2


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("probability", [0.0, 0.2])
@pytest.mark.parametrize(("bits", "inputs"), [(8, 48), (4, 48), (4, 128), (4, 131)])
def test_a_quantised_base_is_the_layer_over_its_rounded_weight(rule, probability, bits, inputs, monkeypatch):
    monkeypatch.setattr(base_weight, "CHUNK_ELEMENTS", 1000)
    torch.manual_seed(0)
    base = nn.Linear(inputs, 40)
    options = {"dropout": probability, "norm_gradient": rule, "activations": "least"}
    layer = NormLowRankLinear(copy.deepcopy(base), 4, 8.0, base_bits=bits, **options)
    rounded = copy.deepcopy(base)
    with torch.no_grad():
        rounded.weight.copy_(BaseWeight(layer.base_weight, layer.base_scale, inputs).rows(slice(None), torch.float32))
    gap = 1 / 254 if bits == 8 else (1 - 0.6961928) / 2  # half of the widest gap between neighbours
    assert (rounded.weight - base.weight).abs().max() <= base.weight.abs().amax() * gap * 1.001
    shapes = base_weight.quantised_shapes((40, inputs), bits)
    assert (layer.base_weight.shape, layer.base_scale.shape) == shapes
    same = NormLowRankLinear(rounded, 4, 8.0, **options)
    with torch.no_grad():
        for one in (layer, same):
            torch.manual_seed(1)
            one.factor_out.normal_(std=0.1)
            one.factor_in.normal_(std=0.1)
    x, grad, found = torch.randn(9, inputs), torch.randn(9, 40), []
    for one in (layer, same):
        torch.manual_seed(2)
        found.append(by_layer(one, x, grad))
    for name in found[0]:
        assert relative(found[0][name], found[1][name]) < 1e-5, name
    assert relative(layer.merge().weight, same.merge().weight) < 1e-6
    again = NormLowRankLinear(nn.Linear(inputs, 40), 4, 8.0, base_bits=bits, **options)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.eval()(x), layer.eval()(x))
    assert layer.bfloat16().base_scale.dtype == torch.float32


def test_a_second_backward_through_a_kept_graph_gives_the_same():
    layer = moved()
    y = layer(torch.randn(9, 24))
    grad = torch.randn(9, 17)
    y.backward(grad, retain_graph=True)
    once = layer.factor_in.grad.clone()
    y.backward(grad)
    assert torch.equal(layer.factor_in.grad, 2 * once)


def test_changing_a_kept_output_in_place_is_an_error_not_a_wrong_gradient():
    layer = moved(activations="fast")
    y = layer(torch.randn(9, 24))
    y.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


def test_changing_the_input_in_place_is_an_error_not_a_wrong_gradient():
    x = torch.randn(9, 24, requires_grad=True) * 1
    y = moved()(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("probability", [0.0, 0.2])
@pytest.mark.parametrize("tokens", [9, 100])
def test_a_magnitude_of_zero_has_its_gradient_where_the_output_is_not_kept(rule, probability, tokens):
    layer = moved(dtype=torch.float64, activations="least", dropout=probability, rule=rule)
    with torch.no_grad():
        layer.magnitude[3] = 0
    x, grad = torch.randn(tokens, 24, dtype=torch.float64), torch.randn(tokens, 17, dtype=torch.float64)
    torch.manual_seed(3)
    got = by_layer(layer, x, grad)["magnitude"]
    torch.manual_seed(3)
    assert relative(got, by_formed_weight(layer, x, grad)["magnitude"]) < 1e-12
    assert got[3] != 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", MODES)
def test_layers_of_one_input_add_up_in_its_gradient(rule, mode):
    layers = [moved(dtype=torch.float64, rule=rule, seed=seed, activations=mode, dropout=0.2) for seed in (0, 1)]
    torch.manual_seed(0)
    x, grad = torch.randn(9, 24, dtype=torch.float64, requires_grad=True), torch.randn(9, 17, dtype=torch.float64)
    torch.manual_seed(3)
    sum(layer(x) for layer in layers).backward(grad)
    torch.manual_seed(3)
    wanted = [by_formed_weight(layer, x, grad) for layer in layers]
    assert relative(x.grad, wanted[0]["x"] + wanted[1]["x"]) < 1e-12
    for layer, found in zip(layers, wanted, strict=True):
        assert relative(layer.factor_in.grad, found["factor_in"]) < 1e-12


def test_factors_changed_before_backward_are_an_error_not_a_wrong_gradient():
    for mode in MODES:
        layer = moved(activations=mode)
        y = layer(torch.randn(9, 24))
        with torch.no_grad():
            layer.factor_in.mul_(2)
        with pytest.raises(RuntimeError, match="inplace"):
            y.sum().backward()


def test_chunks_need_at_least_one_value(monkeypatch):
    monkeypatch.setattr(base_weight, "CHUNK_ELEMENTS", 0)
    with pytest.raises(ValueError, match=r"CHUNK_ELEMENTS 0: must be at least 1 \(nearest allowed value: 1\)"):
        moved(dropout=0.1)(torch.randn(9, 24))


@pytest.mark.parametrize("write", ["copy", "vector", "data"])
def test_a_base_weight_that_is_written_after_attach_gets_its_norms(write):
    layer, x, new = moved(), torch.randn(3, 24), torch.randn(17, 24)
    with torch.no_grad():
        if write == "copy":
            layer.state_dict()["base_weight"].copy_(new)
        elif write == "data":
            layer.base_weight.data = new
        else:
            nn.utils.vector_to_parameters(new.flatten(), [layer.base_weight])
    assert relative(layer(x), layer.merge()(x)) < 1e-5


def test_export_and_function_transforms_see_the_same_function():
    layer = moved(rank=4).eval()
    x = torch.randn(5, 24)
    wanted = layer(x).detach()
    assert relative(torch.export.export(layer, (x,)).module()(x), wanted) < 1e-5
    assert relative(torch.func.vmap(layer)(x), wanted) < 1e-5
    assert torch.func.jacrev(layer)(x[0]).shape == (17, 24)
    traced = torch.jit.trace(layer, x)
    assert relative(traced(x), wanted) < 1e-5

    def loss(parameters):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    mine = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    found = torch.func.grad(loss)(mine)
    layer(x).square().sum().backward()
    for name, parameter in mine.items():
        assert relative(found[name], parameter.grad) < 1e-5, name


@pytest.mark.parametrize("bias", [True, False])
def test_what_transforms_see_in_bf16_is_rounded_after_the_gain(bias):
    layer = moved(64, 32, 4, bias, torch.bfloat16)
    with torch.no_grad():
        layer.factor_out.zero_()
    x = torch.randn(40, 64, dtype=torch.bfloat16)
    gain = layer.magnitude / layer.base_square.sqrt()
    wanted = nn.functional.linear(x, layer.base_weight) * gain + (layer.bias if bias else 0)
    assert torch.equal(torch.func.vmap(layer)(x), wanted.bfloat16())


def test_the_weight_reads_as_a_tensor_that_gradients_pass():
    layer = moved(dtype=torch.float64)
    x, grad = torch.randn(9, 24, dtype=torch.float64), torch.randn(9, 17, dtype=torch.float64)
    wanted = by_layer(layer, x, grad)
    layer.zero_grad()
    nn.functional.linear(x, layer.weight, layer.bias).backward(grad)
    for name in ("factor_out", "factor_in", "magnitude", "bias"):
        assert relative(getattr(layer, name).grad, wanted[name]) < 1e-12, name


def test_the_fast_path_of_a_transformer_layer_reads_the_weight():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        wanted = model(x)
        attach(model, ["linear1", "linear2"], 4, 8.0)
        assert relative(model.eval()(x), wanted) < 1e-5
