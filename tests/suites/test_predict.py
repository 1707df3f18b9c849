"""The prediction without values against the tracked step with values, to the byte."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gnlorp import GradNormLoRPAdamW, attach, param_groups
from suites.measure.predict import MEAN_RULE, PHASES, SCALAR_RULE, Prediction, predict_step_peak, without_values
from suites.measure.trace import peak_of
from suites.measure.tracker import track

transformers = pytest.importorskip("transformers")

Case = tuple[nn.Module, Optimizer, Callable[[], object]]
IDS = torch.arange(4 * 16).view(4, 16) % 90 + 5
FULL = torch.ones_like(IDS)
PADDED = torch.ones_like(IDS).index_fill(1, torch.arange(10, 16), 0)
TARGETS = {"roberta": ["query", "value", "output.dense"], "llama": ["q_proj", "v_proj"]}


def network(name: str, tied: bool = False) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name == "roberta":
        config = transformers.RobertaConfig(**sizes, intermediate_size=96, max_position_embeddings=40)
        return transformers.RobertaForSequenceClassification(config)
    config = transformers.LlamaConfig(
        **sizes, intermediate_size=96, max_position_embeddings=40, tie_word_embeddings=tied, use_cache=False
    )
    return transformers.LlamaForCausalLM(config)


def full(model: nn.Module, name: str) -> tuple[nn.Module, Optimizer]:
    return model, torch.optim.AdamW(model.parameters(), fused=True)


def lora(model: nn.Module, name: str) -> tuple[nn.Module, Optimizer]:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=TARGETS[name], lora_dropout=0.1)
    model = peft.inject_adapter_in_model(config, model)
    return model, torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])


def eight_bit(model: nn.Module, name: str) -> tuple[nn.Module, Optimizer]:
    return model, pytest.importorskip("bitsandbytes").optim.AdamW8bit(model.parameters())


def factors(model: nn.Module, name: str) -> tuple[nn.Module, Optimizer]:
    model.requires_grad_(False)
    attach(model, TARGETS[name], rank=8, alpha=16.0, dropout=0.1)
    return model, GradNormLoRPAdamW(param_groups(model, projection_rank=4), refresh_gap=100)


def dense(state_bits: int = 32, refresh_gap: int = 100) -> Callable[[nn.Module, str], tuple[nn.Module, Optimizer]]:
    def make(model: nn.Module, name: str) -> tuple[nn.Module, Optimizer]:
        projected = [parameter for parameter in model.parameters() if parameter.ndim == 2 and min(parameter.shape) > 60]
        plain = [parameter for parameter in model.parameters() if not any(parameter is other for other in projected)]
        groups = [{"params": projected, "projection_rank": 8}, {"params": plain, "projection_rank": None}]
        return model, GradNormLoRPAdamW(groups, refresh_gap=refresh_gap, state_bits=state_bits)

    return make


def builder(
    name: str,
    method: Callable[[nn.Module, str], tuple[nn.Module, Optimizer]],
    mask: Tensor = FULL,
    micro_batches: int = 1,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
) -> Callable[[], Case]:
    labels = IDS if name == "llama" else torch.tensor([0, 1, 0, 1])

    def build() -> Case:
        model, optimizer = method(network(name, tied).to(dtype).train(), name)

        def step() -> None:
            for _ in range(micro_batches):
                model(input_ids=IDS, attention_mask=mask, labels=labels).loss.backward()
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return model, optimizer, step

    return build


def compare(build: Callable[[], Case], steps_before: int = 1) -> Prediction:
    """Assert that prediction and tracked step agree, over the step and in each phase, category by category."""
    model, optimizer, step = build()
    for _ in range(steps_before):
        step()
    trace = track(model, optimizer, step)
    prediction = predict_step_peak(build, steps_before)
    assert prediction.peak == peak_of(trace)
    for phase in PHASES:
        assert prediction.phases[phase] == peak_of(trace, phase), phase
    return prediction


@pytest.mark.parametrize("name", ["roberta", "llama"])
@pytest.mark.parametrize("method", [full, lora], ids=["full", "lora"])
def test_trusted_methods_agree_without_any_rule(name: str, method: Callable[..., tuple[nn.Module, Optimizer]]) -> None:
    assert compare(builder(name, method)).rules == {}


# Every pair of settings by default.
DENSE = {("roberta", 32, 1), ("roberta", 8, 100), ("llama", 32, 100), ("llama", 8, 1)}


@pytest.mark.parametrize(
    ("name", "state_bits", "refresh_gap"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case not in DENSE))
        for case in product(("roberta", "llama"), (32, 8), (1, 100))
    ],
)
def test_projected_dense_weights_agree(name: str, state_bits: int, refresh_gap: int) -> None:
    if state_bits == 8:
        pytest.importorskip("bitsandbytes")
    prediction = compare(builder(name, dense(state_bits, refresh_gap)))
    assert prediction.rules[SCALAR_RULE] > 0


@pytest.mark.parametrize("name", ["roberta", "llama"])
def test_gnlorp_layers_agree(name: str) -> None:
    build = builder(name, factors)
    model, optimizer, step = build()
    step()
    step()
    trace = track(model, optimizer, step)
    prediction = predict_step_peak(build, steps_before=2)
    assert prediction.peak == peak_of(trace)
    assert prediction.phases["forward"] == peak_of(trace, "forward")
    assert prediction.phases["backward"] == peak_of(trace, "backward")
    # The gradient of B is zero in the first step, since A is: B counts its steps from the second on, and a second
    # counter of 4 bytes lives during the update. Without values that is not known.
    gap = peak_of(trace, "optimizer").total_bytes - prediction.phases["optimizer"].total_bytes
    assert 0 <= gap <= 4


@pytest.mark.parametrize("name", [pytest.param("roberta", marks=pytest.mark.slow), "llama"])
def test_8_bit_states_agree_and_say_by_which_rule(name: str) -> None:
    prediction = compare(builder(name, eight_bit))
    assert set(prediction.rules) == {
        "bitsandbytes::dequantize_blockwise allocates its results alone, no workspace",
        "bitsandbytes::quantize_blockwise allocates its results alone, no workspace",
    }
    in_place = predict_step_peak(builder(name, eight_bit), foreign="in_place")
    assert in_place.phases["optimizer"].temporary_bytes == 0
    assert in_place.phases["optimizer"].optimizer_bytes == prediction.phases["optimizer"].optimizer_bytes
    assert "bitsandbytes::optimizer_update_8bit_blockwise allocates its results alone, no workspace" in in_place.rules


@pytest.mark.parametrize("name", ["roberta", "llama"])
def test_padding_decides_as_in_the_real_step(name: str) -> None:
    # A mask without padding is dropped by the model, one with padding is expanded.
    peaks = [compare(builder(name, full, mask)).phases["forward"] for mask in (FULL, PADDED)]
    assert peaks[0].total_bytes < peaks[1].total_bytes


@pytest.mark.parametrize("name", [pytest.param("roberta", marks=pytest.mark.slow), "llama"])
def test_low_precision_and_accumulation_agree(name: str) -> None:
    peak = compare(builder(name, full, micro_batches=2, dtype=torch.bfloat16)).peak
    assert peak.parameter_bytes == sum(2 * parameter.numel() for parameter in network(name).parameters())


def test_tied_weights_agree() -> None:
    tied, loose = (compare(builder("llama", full, tied=tied)).peak for tied in (True, False))
    assert loose.parameter_bytes - tied.parameter_bytes == 4 * 128 * 64


def test_first_step_agrees_too() -> None:
    compare(builder("roberta", full), steps_before=0)


def test_nothing_outside_is_touched() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    tables: list[Tensor] = []
    build = builder("roberta", full)

    def with_table() -> Case:
        tables.append(functional.create_dynamic_map(signed=True))
        return build()

    before = torch.get_rng_state()
    predict_step_peak(with_table)
    assert torch.equal(before, torch.get_rng_state())
    # A table that a library would keep for the whole process has its real values.
    assert type(tables[0]) is Tensor
    assert torch.equal(tables[0], functional.create_dynamic_map(signed=True))


def test_large_models_take_no_memory() -> None:
    def build() -> Case:
        model = nn.Sequential(*(nn.Linear(8192, 8192, bias=False) for _ in range(64)))
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def step() -> None:
            model(torch.ones(1, 8192)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        return model, optimizer, step

    weights = 4 * 64 * 8192**2
    peak = predict_step_peak(build).peak
    assert peak.parameter_bytes == weights
    assert peak.gradient_bytes == weights
    assert peak.optimizer_bytes == 2 * weights + 4 * 64


def test_reading_memory_that_is_not_there_is_an_error() -> None:
    build = builder("roberta", full)

    def reading() -> Case:
        model, optimizer, _ = build()
        return model, optimizer, lambda: next(model.parameters()).data_ptr()

    with pytest.raises(RuntimeError, match="data pointer"):
        predict_step_peak(reading)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_squared_errors_keep_the_bytes_they_really_keep(reduction: str) -> None:
    def build() -> Case:
        torch.manual_seed(0)
        model = nn.Linear(8, 1)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def step() -> None:
            errors = nn.functional.mse_loss(model(torch.ones(16, 8)).squeeze(), torch.zeros(16), reduction=reduction)
            errors.sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return model, optimizer, step

    rules = compare(build).rules
    assert (MEAN_RULE in rules) is (reduction != "none")


def test_negative_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps_before -1"):
        predict_step_peak(builder("roberta", full), steps_before=-1)


@pytest.mark.parametrize("bounds", [(-2.0, 2.0), (-0.1, 0.1)])
def test_a_draw_until_no_value_lies_outside_ends_without_values(bounds: tuple[float, float]) -> None:
    weight = torch.empty(8, 8)
    with without_values():
        shapes = torch.nn.init.trunc_normal_(torch.empty(8, 8), 0.0, 1.0, *bounds).shape
    assert shapes == weight.shape
    torch.nn.init.trunc_normal_(weight, 0.0, 1.0, *bounds)
    assert bool((weight.abs() <= bounds[1]).all()), "the function is back"


def test_a_loop_that_waits_for_a_value_ends_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.measure.predict.MOST_SCALARS", 50)

    def wait() -> None:
        weight = torch.empty(4)
        while (weight > 0).any():
            weight = weight - 1

    with without_values(), pytest.raises(RuntimeError, match="a loop waits for a value that is not there"):
        wait()


def test_modernbert_is_made_without_values() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    config = transformers.ModernBertConfig(**sizes, intermediate_size=64)
    with without_values():
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    assert model.config.model_type == "modernbert"
