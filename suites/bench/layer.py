"""One linear layer, forward and backward: ours under both gradient rules, peft's LoRA and DoRA, and full training.

All share one weight; those with factors have equal ones, those with magnitudes too. The detached rule's output and
gradients must be those of DoRA, the full rule's those of autograd through the formed weight. LoRA has no norm: it does
less work and is the yardstick. Ours stands in every mode: keeping everything for backward ("fast"), the input alone
("least"), or beside it the output, which a model may keep anyway ("auto"). Our layer as an earlier commit had it is one
more candidate for each rule, where the bench is run against that commit.

Forward alone, without gradients, is measured too: peft keeps DoRA's product and norm across such calls where it is told
to (`DoraCaching`; it has no other path for DoRA).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.helpers import DoraCaching
from pydantic import JsonValue
from torch import Tensor, nn

from gnlorp import NormLowRankLinear
from gnlorp.layer import Activations, NormGradient
from results.bench import FORMER, BenchCell, Ratio
from suites.bench.former import TARGETS as FORMER_TARGETS
from suites.bench.former import Former, against
from suites.bench.timing import candidate, in_turns, ratio_claim
from suites.measure.trace import peak_of
from suites.measure.tracker import track

LORA, DORA, CACHED, LINEAR = "lora", "dora", "dora cached", "linear"
OURS: dict[str, tuple[NormGradient, Activations]] = {
    f"{rule}, {mode}": (rule, mode) for rule in get_args(NormGradient) for mode in get_args(Activations)
}
FORMERS: dict[str, NormGradient] = {f"{FORMER} {rule}": rule for rule in get_args(NormGradient)}
RULES = {name: rule for name, (rule, _) in OURS.items()} | FORMERS
TITLES = {name: f"gnlorp, {rule} rule, {mode}" for name, (rule, mode) in OURS.items()} | {
    LORA: "LoRA (peft)",
    DORA: "DoRA (peft)",
    LINEAR: "nn.Linear, trained",
}
ALONE = ", forward alone"
FORWARD = {
    "full, auto": "gnlorp",
    LORA: TITLES[LORA],
    DORA: TITLES[DORA],
    CACHED: "DoRA (peft), cached",
}
TIME_TARGET, BYTES_TARGET = 1.15, 1.1
LIMIT = 1e-3


def layer_cell(
    shape: tuple[int, int], rank: int, tokens: int, bias: bool, budget_s: float, former: Former | None = None
) -> BenchCell:
    """Measure one shape (O, I) at one rank: seconds in turns, and the exact bytes that a call allocates at its peak."""
    torch.manual_seed(0)
    outputs, inputs = shape
    base = nn.Linear(inputs, outputs, bias=bias)
    base.requires_grad_(False)
    x, grad = torch.randn(tokens, inputs, requires_grad=True), torch.randn(tokens, outputs)
    layers = make_layers(base, rank, former)
    titles = TITLES if former is None else TITLES | _former_titles(former)
    agreement = compared(layers, base, x, grad, titles)
    work = {name: _pass_of(layer, x, grad) for name, layer in layers.items() if name != CACHED}
    peaks = {name: _peak_bytes(layers[name], x, call) for name, call in work.items()}
    work |= {name + ALONE: _forward_of(layers[name], x, name == CACHED) for name in FORWARD}
    seconds = in_turns(work, budget_s)
    settings: dict[str, JsonValue] = {
        "shape": [*shape], "rank": rank, "tokens": tokens, "bias": bias, "dtype": "float32", **against(former)
    }  # fmt: skip
    return BenchCell(
        group="layer",
        label=f"{outputs}x{inputs}, rank {rank}, {tokens} tokens",
        settings=settings,
        candidates=[
            *(candidate(name, title, seconds, peaks[name]) for name, title in titles.items()),
            *(candidate(name + ALONE, title + ALONE, seconds) for name, title in FORWARD.items()),
        ],
        claims=_claims(seconds, peaks, titles),
        agreement=agreement,
        agreement_limit=LIMIT,
    )


def _claims(seconds: Mapping[str, Sequence[float]], peaks: Mapping[str, int], titles: Mapping[str, str]) -> list[Ratio]:
    claims = []
    for peer in (LORA, DORA, CACHED):
        pair = (f"full, auto{ALONE}", peer + ALONE)
        names = (FORWARD["full, auto"] + ALONE, FORWARD[peer] + ALONE)
        claims.append(ratio_claim("forward time", seconds[pair[0]], seconds[pair[1]], names))
    for ours, (rule, mode) in OURS.items():
        limits: dict[str, tuple[float | None, float | None]] = {
            LORA: (TIME_TARGET, BYTES_TARGET) if mode == "fast" else (None, None),
            DORA: (None, None),
            LINEAR: (None, None),
            f"{FORMER} {rule}": (FORMER_TARGETS[mode], None),
        }
        for peer, (longest, largest) in limits.items():
            if peer in titles:
                names = (titles[ours], titles[peer])
                claims.append(ratio_claim("time", seconds[ours], seconds[peer], names, target=longest))
                claims.append(ratio_claim("peak bytes", [peaks[ours]], [peaks[peer]], names, target=largest))
    return claims


def _former_titles(former: Former) -> dict[str, str]:
    return {name: f"gnlorp at {former.revision}, {rule} rule" for name, rule in FORMERS.items()}


def make_layers(base: nn.Linear, rank: int, former: Former | None = None) -> dict[str, nn.Module]:
    """Return the layers over one weight, with equal factors and magnitudes near the row norms."""
    alpha = 2 * rank
    factor_out, factor_in = 0.02 * torch.randn(base.out_features, rank), 0.02 * torch.randn(rank, base.in_features)
    with torch.no_grad():
        direction = torch.addmm(base.weight, factor_out, factor_in, alpha=alpha / rank)
        magnitude = torch.linalg.vector_norm(direction, dim=1) * (1 + 0.1 * torch.randn(base.out_features))
        del direction
    layers: dict[str, nn.Module] = {}
    for name, (rule, mode) in OURS.items():
        layers[name] = NormLowRankLinear(_sharing(base), rank, alpha, norm_gradient=rule, activations=mode)
    if former is not None:
        layers |= {
            name: former.layer(_sharing(base), rank, alpha, norm_gradient=rule) for name, rule in FORMERS.items()
        }
    for ours in layers.values():
        _set(ours.get_parameter("factor_out"), factor_out)
        _set(ours.get_parameter("factor_in"), factor_in)
        _set(ours.get_parameter("magnitude"), magnitude)
    for name in (LORA, DORA, CACHED):
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"], use_dora=name != LORA)
        theirs: Any = inject_adapter_in_model(config, nn.Sequential(_sharing(base))).get_submodule("0")
        _set(theirs.lora_B["default"].weight, factor_out)
        _set(theirs.lora_A["default"].weight, factor_in)
        if "default" in theirs.lora_magnitude_vector:
            _set(theirs.lora_magnitude_vector["default"].weight, magnitude)
        layers[name] = theirs
    layers[LINEAR] = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None)
    return layers


def compared(
    layers: dict[str, nn.Module], base: nn.Linear, x: Tensor, grad: Tensor, titles: Mapping[str, str] = TITLES
) -> dict[str, float]:
    """Return the largest relative difference of each layer's outputs and gradients from what they must be."""
    formed = _formed(next(layers[name] for name in OURS), base, x, grad)
    dora = _results(layers[DORA], ("lora_B.default.weight", "lora_A.default.weight"), x, grad)
    found = {}
    for name, rule in RULES.items():
        if name in titles:
            what, right = ("DoRA", dora) if rule == "detached" else ("the formed weight", formed)
            ours = _results(layers[name], ("factor_out", "factor_in"), x, grad)
            found[f"{titles[name]} against {what}"] = _apart(ours, right)
    return found


def _results(layer: nn.Module, factors: tuple[str, str], x: Tensor, grad: Tensor) -> list[Tensor]:
    _pass_of(layer, x, grad)()
    assert x.grad is not None
    with torch.no_grad():
        results = [layer(x), x.grad.clone()]
    grads = [layer.get_parameter(name).grad for name in factors]
    results += [each.clone() for each in grads if each is not None]
    _forget(layer, x)
    return results


def _formed(layer: nn.Module, base: nn.Linear, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Return output and gradients through V itself, by autograd."""
    assert isinstance(layer, NormLowRankLinear)
    out, inner = (factor.detach().requires_grad_() for factor in (layer.factor_out, layer.factor_in))
    direction = torch.addmm(base.weight, out, inner, alpha=layer.scaling)
    norm = torch.linalg.vector_norm(direction, dim=1)
    y = torch.nn.functional.linear(x, direction) * (layer.magnitude.detach() / norm)
    y = y if base.bias is None else y + base.bias
    x_grad, out_grad, in_grad = torch.autograd.grad(y, (x, out, inner), grad)
    return [y.detach(), x_grad, out_grad, in_grad]


def _apart(some: list[Tensor], others: list[Tensor]) -> float:
    assert len(some) == len(others)
    return max(float((a - b).norm() / b.norm()) for a, b in zip(some, others, strict=True))


def _pass_of(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    def call() -> None:
        _forget(layer, x)
        layer(x).backward(grad)

    return call


def _forward_of(layer: nn.Module, x: Tensor, cached: bool) -> Callable[[], None]:
    """Return forward alone in evaluation; the way back to training empties peft's cache, so a cached layer stays."""

    @torch.no_grad()
    def call() -> None:
        with DoraCaching(cached):
            layer.eval()
            layer(x)
        if not cached:
            layer.train()

    return call


def _forget(layer: nn.Module, x: Tensor) -> None:
    x.grad = None
    for parameter in layer.parameters():
        parameter.grad = None


def _peak_bytes(layer: nn.Module, x: Tensor, call: Callable[[], None]) -> int:
    """Return what one call holds at its peak beyond what was there before it."""
    _forget(layer, x)
    trace = track(layer, None, call)
    before = sum(event.delta_bytes for event in trace.events if event.phase == "start")
    return peak_of(trace).total_bytes - before


def _sharing(base: nn.Linear) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(base.in_features, base.out_features, bias=False)
    linear.weight = base.weight
    linear.register_parameter("bias", base.bias)
    return linear


def _set(parameter: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)
