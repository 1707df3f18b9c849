"""What is made again in backward: the gradients of the plain model, fewer bytes, and errors where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

from baselines.method import AdamSettings
from baselines.registry import get_method
from baselines.shared.targets import place
from results.schema import TrainingPlan
from suites.__main__ import app
from suites.config import Settings, method_config, resolve
from suites.measure.tracker import track
from suites.models import checkpoint_activations
from suites.recompute import IGNORED, PARTS, linear_cross_entropy, parts, recompute
from suites.run.execute import execute
from suites.run.preflight import predict_peaks
from suites.suite import Runtime

transformers = pytest.importorskip("transformers")

METHODS = ("full", "lora", "dora", "galore", "gradnormlorp")
SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IDS = torch.arange(4 * 12).view(4, 12) % 90 + 5


def quiet(step: int, loss: float) -> None:
    pass


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(**SIZES, max_position_embeddings=40, use_cache=False)
        return transformers.LlamaForCausalLM(config).train()
    config = transformers.RobertaConfig(**SIZES, max_position_embeddings=40)
    return transformers.RobertaForSequenceClassification(config).train()


def gradients(
    kind: str, method: str, chosen: tuple[Any, ...], dtype: torch.dtype, mode: str = "", steps: int = 2
) -> list[Tensor]:
    """Return the loss and all gradients of the last of some steps."""
    model = network(kind).to(dtype)
    placement, chosen_method = place(model, "attention+mlp", train_rest=True), get_method(method)
    config = method_config(method, 4, {})
    torch.manual_seed(1)
    chosen_method.attach(model, placement, config)
    if mode == "checkpointing":
        checkpoint_activations(model)
    recompute(model, chosen)
    optimizer = chosen_method.make_optimizer(model, placement, AdamSettings(1e-2), config)
    labels = IDS if kind == "llama" else torch.tensor([0, 1, 0, 1])
    for _ in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(2)
        for rows in (slice(0, 2), slice(2, 4)):
            with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
                loss = model(input_ids=IDS[rows], labels=labels[rows]).loss
            loss.backward()
        optimizer.step()
    return [loss.detach()] + [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.two_methods
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["llama", "roberta"])
@pytest.mark.parametrize("mode", ["", "checkpointing", "autocast", "bf16"])
def test_norms_and_mlp_made_again_have_the_very_gradients(kind: str, method: str, mode: str) -> None:
    dtype = torch.bfloat16 if mode == "bf16" else torch.float32
    plain, again = (gradients(kind, method, chosen, dtype, mode) for chosen in ((), ("norms", "mlp")))
    if kind == "llama" and dtype == torch.float32:
        # Here the norm reads its input twice in one dtype: three gradients are summed in another order.
        assert all((a - b).norm() <= 1e-3 * a.norm() for a, b in zip(plain, again, strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(plain, again, strict=True))
        again = gradients(kind, method, ("mlp",), dtype, mode)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("mode", ["", "autocast"])
def test_the_loss_by_chunks_has_the_gradients_to_rounding(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnlorp.base_weight.CHUNK_ELEMENTS", 500)
    plain, again = (gradients("llama", "full", chosen, torch.float32, mode, steps=1) for chosen in ((), PARTS))
    for a, b in zip(plain, again, strict=True):
        assert (a - b).norm() <= (3e-2 if mode else 1e-5) * a.norm()


def by_float64(hidden: Tensor, weight: Tensor, labels: Tensor) -> list[Tensor]:
    leaves = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    loss = F.cross_entropy(F.linear(*leaves).flatten(0, -2), labels.flatten(), ignore_index=IGNORED)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize("chunk", [1 << 22, 700])
def test_the_loss_is_that_of_double_precision(
    dtype: torch.dtype, tolerance: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnlorp.base_weight.CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 40, 32).to(dtype), (0.3 * torch.randn(96, 32)).to(dtype)
    labels = torch.randint(96, (3, 40))
    labels[:, 30:] = IGNORED
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    loss = linear_cross_entropy(hidden, weight, labels)
    found = [loss.detach(), *torch.autograd.grad(3 * loss, leaves)]
    wanted = by_float64(hidden, weight, labels)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    for got, want, factor in zip(found, wanted, (1, 3, 3), strict=True):
        assert (got.double() - factor * want).norm() <= tolerance * factor * want.norm()
    # Gradients in bfloat16 are as near as those of the formed logits, but for a little rounding of other places.
    logits = F.linear(*leaves).to(loss.dtype)
    plain = torch.autograd.grad(3 * F.cross_entropy(logits.flatten(0, 1), labels.flatten()), leaves)
    for got, usual, want in zip(found[1:], plain, wanted[1:], strict=True):
        assert (got.double() - 3 * want).norm() <= 1.2 * (usual.double() - 3 * want).norm() + 1e-14


def kept_elements(chosen: tuple[Any, ...], kind: str, checkpointing: bool = False) -> int:
    """Return the floating-point values that forward keeps for backward beside the parameters."""
    model = network(kind)
    if checkpointing:
        checkpoint_activations(model)
    recompute(model, chosen)
    labels = IDS if kind == "llama" else torch.tensor([0, 1, 0, 1])
    held: list[Any] = []

    def run() -> None:
        held.append(model(input_ids=IDS, labels=labels).loss)

    kinds = (trace := track(model, None, run)).categories
    activations = [e for e in trace.events if e.storage is not None and kinds[e.storage] == "activation"]
    return sum(e.delta_bytes for e in activations if e.phase == "forward") // 4


def test_forward_keeps_what_it_says() -> None:
    tokens, hidden, inner, vocabulary, norms = IDS.numel(), 32, 48, 96, 5
    plain = kept_elements((), "llama")
    # silu(gate) and the product, in both layers.
    assert plain - kept_elements(("mlp",), "llama") == 2 * 2 * tokens * inner
    # The normalised input, once for its weight and once more for what reads it (but for the head, which reads a view),
    # and the inverse root of a row.
    assert plain - kept_elements(("norms",), "llama") == norms * tokens * (hidden + 1) + (norms - 1) * tokens * hidden
    # Log-probabilities; two numbers a token are kept instead.
    assert plain - kept_elements(("loss",), "llama") >= tokens * (vocabulary - 4)
    # A checkpointed block keeps its input alone, whatever is made again inside it; the last norm lies outside.
    both = kept_elements(("norms", "mlp"), "llama", checkpointing=True)
    assert kept_elements((), "llama", checkpointing=True) - both == tokens * (hidden + 1)
    encoder = kept_elements((), "roberta")
    assert encoder - kept_elements(("mlp",), "roberta") == 2 * tokens * inner


def test_a_run_takes_them_from_its_plan(make_plan: Any, runtime: Runtime) -> None:
    plain, again = (make_plan("rte", "gradnormlorp", recompute=chosen, batch_size=16) for chosen in ("", "mlp,norms"))
    assert plain.training.recompute == ()
    assert again.training.recompute == ("norms", "mlp")
    assert plain.hash() != again.hash()
    assert "recompute" not in plain.model_dump_json(exclude_defaults=True)
    predicted = predict_peaks([again], runtime)[again.hash()]
    first, second = execute(plain, runtime, None, quiet), execute(again, runtime, predicted, quiet)
    assert (first.status, second.status) == ("ok", "ok"), second.error
    assert [point.loss for point in first.curve] == [point.loss for point in second.curve]
    assert first.final_digest == second.final_digest
    assert first.memory is not None
    assert second.memory is not None
    assert first.memory.step_peak is not None
    assert second.memory.step_peak is not None
    assert second.memory.step_peak.activation_bytes < first.memory.step_peak.activation_bytes
    assert second.memory.predicted_peak_bytes == second.memory.step_peak.total_bytes


def test_names_are_checked_and_ordered() -> None:
    assert parts("mlp, norms") == parts(["norms", "mlp", "mlp"]) == ("norms", "mlp")
    assert parts("") == ()
    with pytest.raises(ValueError, match=r"unknown part to recompute 'los'.*nearest: loss"):
        parts("los")
    with pytest.raises(ValueError, match="recompute = 'los'.*known are norms, mlp, loss"):
        resolve(Settings, [{"model": "micro", "recompute": "los"}], "rte", "full")
    literal = TrainingPlan.model_fields["recompute"].annotation
    assert str(literal).count("'") == 2 * len(PARTS)


def test_a_model_without_the_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"recompute = loss: RobertaForSequenceClassification has no such part"):
        recompute(network("roberta"), PARTS)
    for part in PARTS:
        with pytest.raises(ValueError, match=f"recompute = {part}: Sequential"):
            recompute(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), (part,))
    result = CliRunner().invoke(app, ["memory", "minilm", "full", "--batch", "2", "--recompute", "loss"])
    assert result.exit_code == 2
    assert "recompute = loss" in result.stderr
    result = CliRunner().invoke(app, ["memory", "micro", "gradnormlorp", "--variant", "8-bit weight"])
    assert result.exit_code == 2
    assert "nearest: 8-bit weights" in result.stderr
    result = CliRunner().invoke(app, ["plan", "glue", "--profile", "micro", "--set", "recompute=loss"])
    assert result.exit_code == 2
    assert "recompute = loss" in result.stderr


class Block(nn.Module):
    def __init__(self, changed: str) -> None:
        super().__init__()
        self.norm, self.linear, self.changed = nn.LayerNorm(6), nn.Linear(6, 3), changed

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        y = self.norm(x)
        if self.changed == "before":
            y += 1
        z = self.linear(y)
        if self.changed == "input":
            x += 1
        if self.changed == "weight":
            self.linear.weight.data_ptr()
            with torch.no_grad():
                self.linear.weight.mul_(2)
        return z


@pytest.mark.parametrize("changed", ["input", "weight"])
def test_a_change_in_place_after_forward_is_an_error(changed: str) -> None:
    model = Block(changed)
    recompute(model, ("norms",))
    z = model(torch.randn(4, 6, requires_grad=True))
    with pytest.raises(RuntimeError, match="inplace"):
        z.sum().backward()


def test_an_output_that_is_changed_before_it_is_read_is_kept() -> None:
    torch.manual_seed(0)
    model = Block("before")
    x = torch.randn(4, 6)
    model(x).square().sum().backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    recompute(model, ("norms",))
    model.zero_grad()
    model(x).square().sum().backward()
    assert all(torch.equal(p.grad, w) for p, w in zip(model.parameters(), wanted, strict=True))


def test_two_backward_passes_and_none_leave_nothing_wrong() -> None:
    torch.manual_seed(0)
    model = Block("")
    recompute(model, ("norms",))
    x = torch.randn(4, 6)
    with torch.no_grad():
        model(x)
    loss = model(x).square().sum()
    loss.backward(retain_graph=True)
    once = model.norm.weight.grad.clone()
    loss.backward()
    assert torch.equal(model.norm.weight.grad, 2 * once)
