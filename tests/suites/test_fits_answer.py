"""What fits, answered: models by name, steps composed from few layers, and the numbers against hand arithmetic."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from typer.testing import CliRunner

import gnlorp.base_weight
from baselines.registry import methods
from results.lab import FitsAnswer, FitsRow, Setting
from results.schema import Peak
from suites.__main__ import app
from suites.lab import lines, splice
from suites.lab.answer import answer, beside
from suites.lab.asked import Asked, lab_of
from suites.lab.composed import Composed, Shared
from suites.lab.fits import largest_near
from suites.lab.fits_command import overview
from suites.lab.lab import Lab
from suites.lab.named import named, named_models, nearest
from suites.lab.networks import Network, _network, find_network
from suites.lab.quantised import four_bit_bytes, four_bits
from suites.lab.step import forward_backward
from suites.measure.estimate import CONTEXT_BYTES
from suites.measure.trace import Trace, peak_of
from suites.measure.tracker import track
from suites.run.loop import apply_gradients

GIB = 2**30
Refused = Callable[..., str]
REST: dict[str, Any] = {
    "batch": 1, "accumulation": 1, "sequence": 16, "state_bits": 32, "per_layer": False, "checkpointing": False,
    "recompute": (), "processes": 1, "shard": None, "variant": "", "bf16_updates": "nearest", "device": "cuda",
}  # fmt: skip
ONE_OF_EACH = {each.config["model_type"]: name for name, each in reversed(named_models().items())}
SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "num_hidden_layers": 8, "moe_intermediate_size": 24, "num_experts": 4,
    "num_local_experts": 4, "max_position_embeddings": 64, "sliding_window": 8, "local_attention": 8,
    "query_pre_attn_scalar": 8, "pad_token_id": 0, "dim": 32, "hidden_dim": 48, "n_heads": 4, "n_layers": 8,
    "n_embd": 32, "n_head": 4, "n_layer": 8, "n_positions": 64, "position_buckets": 8,
}  # fmt: skip
FEW_EXPERTS = {"num_experts_per_tok": 2}


def asked(**changes: Any) -> Asked:
    rest = {**REST, **{name: changes.pop(name) for name in list(changes) if name in REST}}
    return Asked(**{"rank": 4, **changes}, rest=rest)


def tiny(kind: str, **changes: Any) -> Network:
    """A model of the same class as the named ones of a kind, everything in it small."""
    config = dict(named_models()[ONE_OF_EACH[kind]].config)
    del config["model_type"]
    small = {name: value for name, value in SMALL.items() if name in config and config[name] is not None}
    small |= FEW_EXPERTS if "num_experts_per_tok" in config else {}
    rope = {"rope_parameters": None} if kind not in ("gemma3_text",) else {}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        small[name] = 0
    return _network(f"tiny-{kind}", AutoConfig.for_model(kind, **{**config, **small, **rope, **changes}))


class Whole(Network):
    """A network that is never traced from few of its layers."""

    @property
    def layers(self) -> int | None:
        return None


def whole(network: Network) -> Network:
    return Whole(network.name, network.config, network.language_model)


def peaks(network: Network, method: str, question: Asked, rows: int) -> list[Peak]:
    lab, setting = lab_of(whole(network), method, question)
    _, plain, again = lab._step(setting.model_copy(update={"batch": rows}))
    return [peak_of(trace) for trace in (plain, again) if trace is not None]


def check_composed(network: Network, method: str, question: Asked, *rows: int) -> Composed:
    build, built = Lab.build, []

    def noted(lab: Lab, *layers: Any) -> Any:
        built.append(layers)
        return build(lab, *layers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lab, "build", noted)
        found = Composed(*lab_of(network, method, question), Shared())
    assert not (found.read_whole and methods()[method].default)
    whole_read = found._chosen is None or found.read_whole
    assert whole_read or all(any(layers) for layers in built), "the whole model was built"
    for count in rows:
        highest = max(peaks(network, method, question, count), key=lambda peak: peak.total_bytes)
        parts = {f"{name}_bytes": size for name, size in found.parts(count).items()}
        apart = {name: size - parts[name] for name, size in highest.model_dump().items() if name in parts}
        # Scalars that a class makes anew in every layer's forward are seen as if they had been there (DeBERTa).
        assert 0 <= apart.pop("other_bytes") <= 16 * len(found._kinds), (method, count)
        assert set(apart.values()) == {0}, (method, count, apart)
    return found


QUICK_KINDS = ("llama",)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK_KINDS else pytest.mark.slow) for kind in sorted(ONE_OF_EACH)]
)
def test_a_few_layers_say_what_the_whole_model_takes(kind: str) -> None:
    network = tiny(kind)
    method = "lora" if kind != "gpt2" else "full"
    found = check_composed(network, method, asked(precision="bf16"), 1, 2, 5)
    if kind != "gpt2":
        assert len(found._chosen or ()) < 8


@pytest.mark.slow
@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("method", [name for name, each in methods().items() if not each.control])
def test_so_they_do_under_every_method(method: str, state_bits: int) -> None:
    if state_bits not in methods()[method].widths:
        pytest.skip("not a width of it")
    pytest.importorskip("bitsandbytes")
    for work in ("fine-tuning", "pre-training"):
        check_composed(tiny("llama"), method, asked(state_bits=state_bits, work=work, precision="bf16"), 1, 3)


@pytest.mark.parametrize("method", ["galore", pytest.param("gradnormlorp", marks=pytest.mark.slow)])
def test_so_they_do_where_bases_are_refreshed(method: str) -> None:
    check_composed(tiny("qwen2"), method, asked(precision="bf16"), 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["galore", "galore_norm", "lora", "gradnormlorp"])
def test_the_allocator_holds_nearly_what_it_holds_for_the_whole_trace(method: str) -> None:
    lab, setting = lab_of(find_network("60m", offline=True), method, asked(rank=128, sequence=256))
    composed = Composed(lab, setting, Shared())
    for rows in (2, 8):
        found, wanted = composed.held(rows), lab.held(setting.model_copy(update={"batch": rows}))
        assert found.tensor_bytes == wanted.tensor_bytes
        assert found.allocated_bytes == pytest.approx(wanted.allocated_bytes, rel=0.02)
        assert found.reserved_bytes == pytest.approx(wanted.reserved_bytes, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"checkpointing": True}, {"accumulation": 2, "batch": 2}, {"per_layer": True}, {"recompute": ("loss",)}]
)
def test_so_they_do_in_every_mode(changes: dict[str, Any]) -> None:
    check_composed(tiny("llama"), "full", asked(precision="bf16", **changes), 1, 2, 5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["galore_norm", "gradnormlorp"])
def test_so_they_do_where_tokens_are_gone_through_in_chunks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two and three rows of 16 tokens are one chunk of the widest matrix; five and twenty rows are several.
    monkeypatch.setattr(gnlorp.base_weight, "CHUNK_ELEMENTS", 3 * 16 * 48)
    check_composed(tiny("llama"), method, asked(precision="bf16"), 1, 2, 5, 20)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "gradnormlorp"])
def test_so_they_do_over_four_bits(method: str) -> None:
    pytest.importorskip("bitsandbytes")
    check_composed(tiny("llama"), method, asked(base_bits=4, precision="bf16"), 2)


# The traced part is what a step with values takes: one tiny model of each class, without rules of a device.
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK_KINDS else pytest.mark.slow) for kind in sorted(ONE_OF_EACH)]
)
def test_without_values_as_with_them(kind: str) -> None:
    network = tiny(kind)
    method = "lora" if kind != "gpt2" else "full"
    lab, setting = lab_of(whole(network), method, asked(precision="bf16", device="cpu", batch=2))
    _, plain, _ = lab._step(setting)
    real = real_step(lab, setting)
    assert peak_of(plain) == peak_of(real)


def real_step(lab: Lab, setting: Setting) -> Trace:
    torch.manual_seed(0)
    model, placement = lab.build()
    optimizer = lab.optimizer(model, placement, setting.state_bits)
    batches = lab.batches(setting)
    held: list[torch.Tensor] = []

    def ordinary() -> None:
        held[:] = [forward_backward(model, batches, lab.loss)]
        apply_gradients(optimizer)

    ordinary()
    ordinary()
    return track(model, optimizer, ordinary, look_into_foreign=False)


def counted(name: str) -> int:
    network = find_network(name)
    with torch.device("meta"):
        model = network.model() if network.language_model else AutoModel.from_config(network.config)
    return sum(parameter.numel() for parameter in model.parameters())


def check_count(name: str) -> None:
    said = named_models()[name]
    assert counted(name) == said.parameters + sum(said.beside.values()), name
    assert said.source
    assert said.counted.startswith("https://")


@pytest.mark.parametrize(
    "name", ["llama-3.2-1b", "qwen3-0.6b", "mixtral-8x7b-v0.1", "gemma-3-270m", "phi-4-mini", "modernbert-base", "gpt2"]
)
def test_models_by_name_have_the_published_number_of_parameters(name: str) -> None:
    check_count(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(named_models()))
def test_all_of_them_do(name: str) -> None:
    check_count(name)


@pytest.mark.parametrize("method", ["galore", "gradnormlorp", "fira"])
def test_the_rank_of_pre_training_is_one_that_the_narrowest_target_has(method: str) -> None:
    network = tiny("llama", hidden_size=64, num_attention_heads=8, num_key_value_heads=1, head_dim=8)
    lab, setting = lab_of(network, method, asked(rank=None, work="pre-training", sequence=8))
    assert setting.rank == 4
    assert lab.cell(setting).peak.optimizer_bytes > 0


def test_names_are_found_in_any_case_and_by_their_hub_name() -> None:
    assert named("Llama-3.1-8B") == named("meta-llama/Llama-3.1-8B") == "llama-3.1-8b"
    assert named("llama-3.1-9b") is None
    assert nearest("lama-3.1-8b", named_models())[0] == "llama-3.1-8b"
    assert find_network("qwen2.5-7b").config.num_key_value_heads == 4


@pytest.fixture(scope="module")
def llama_8b() -> FitsAnswer:
    return answer("llama-3.1-8b", ["full", "lora"], asked(rank=16, precision="bf16", sequence=512), 24 * GIB, True)


def test_weights_adapters_and_state_are_those_of_hand_arithmetic(llama_8b: FitsAnswer) -> None:
    full, lora = llama_8b.rows
    # O + I of q and o, k and v, gate and up and down; 32 layers of rank 16.
    adapters = 32 * 16 * (2 * (4096 + 4096) + 2 * (1024 + 4096) + 3 * (14336 + 4096))
    assert adapters == 41_943_040
    assert lora.trained_parameters == adapters
    inverse_frequencies = 2 * 64 * 4
    assert lora.weight_bytes - 2 * (8_030_261_248 + adapters) == pytest.approx(inverse_frequencies, abs=512)
    assert lora.gradient_bytes == 2 * adapters
    # Two moments of bf16 a value, and a step counter of 4 bytes a factor.
    assert lora.state_bytes == 2 * 2 * adapters + 4 * 2 * 7 * 32
    assert lora.trains == "adapters alone"
    assert (full.trains, full.gradient_bytes) == ("everything", 2 * 8_030_261_248)
    assert max(lora.state_dtypes, key=lora.state_dtypes.__getitem__) == "bfloat16"
    # 16 GB of weights and as many of gradients: 24 GiB cannot hold full training, and hold adapters' weights.
    assert not full.estimates["low"].fits
    assert lora.estimates["expected"].fits
    low, expected, high = (lora.estimates[each] for each in ("low", "expected", "high"))
    assert low.largest_batch >= expected.largest_batch >= high.largest_batch >= 1
    for each in (low, expected, high):
        assert each.takes_bytes is not None
        assert each.takes_bytes <= 24 * GIB < (each.next_bytes or 0)
    assert low.asked_bytes >= lora.weight_bytes + lora.gradient_bytes + lora.state_bytes + CONTEXT_BYTES["low"]


def test_accelerate_stands_beside(llama_8b: FitsAnswer) -> None:
    assert llama_8b.accelerate_bytes == beside(find_network("llama-3.1-8b"), "bf16")
    assert llama_8b.accelerate_bytes["weights"] == pytest.approx(2 * 8_030_261_248, rel=1e-3)


def test_four_bits_take_what_bitsandbytes_makes_of_a_weight() -> None:
    pytest.importorskip("bitsandbytes")
    linear = nn.Linear(192, 80, bias=False)
    made = four_bits(linear)
    held = [*made.parameters(), *made.buffers()]
    assert sum(tensor.nbytes for tensor in held) == four_bit_bytes((80, 192))
    x = torch.randn(3, 192)
    assert torch.allclose(made(x), linear(x), atol=0.3)


def test_weights_in_four_bits_are_hand_arithmetic_too() -> None:
    pytest.importorskip("bitsandbytes")
    (row,) = answer("smollm2-135m", ["lora"], asked(base_bits=4, precision="bf16"), 8 * GIB, True).rows
    shapes = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
    layers = 30 * sum(four_bit_bytes(shape) for shape in shapes)
    rest = 2 * (49152 * 576 + 61 * 576)
    adapters = 2 * 30 * 4 * sum(sum(shape) for shape in shapes)
    assert row.weight_bytes == pytest.approx(layers + rest + adapters, abs=30 * 7 * 4 * 16 + 512)


def test_pretraining_trains_embeddings_and_head_too() -> None:
    network = tiny("llama")
    found = Composed(*lab_of(network, "lora", asked(work="pre-training")), Shared())
    alone = Composed(*lab_of(network, "lora", asked()), Shared())
    embeddings_norms_head = 2 * 128 * 32 + 17 * 32
    if network.config.tie_word_embeddings:
        embeddings_norms_head -= 128 * 32
    assert found.rest.trained - alone.rest.trained == embeddings_norms_head
    assert found.placement.trained
    assert not alone.placement.trained


LORA_ALIKE = ["lora", "rslora", "loraplus", "pissa", "relora"]


def test_methods_that_share_a_trace_say_what_they_say_alone() -> None:
    question = asked(precision="bf16", sequence=8)
    together = _answer_at(tiny("llama"), LORA_ALIKE, question)
    alone = [_answer_at(tiny("llama"), [method], question)[0] for method in LORA_ALIKE]
    assert together == alone


def test_a_shared_rest_is_of_one_optimizer() -> None:
    shared = Shared()
    for method in ("lora", "rslora", "pissa", "loraplus", "full", "adamw8bit", "muon"):
        Composed(*lab_of(tiny("llama"), method, asked(precision="bf16", sequence=8)), shared)
    # LoRA, rsLoRA and PiSSA have one, whatever the factor; the groups of LoRA+ are two.
    assert (len(shared.rests), len(shared.halves)) == (5, 2)


def _answer_at(network: Network, methods: list[str], question: Asked) -> list[FitsRow]:
    from suites.lab import answer as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "find_network", lambda *_: network)
        return answer("tiny", methods, question, GIB, True).rows


def test_the_largest_batch_is_in_the_unit_of_the_batch_asked_about() -> None:
    (row,) = _answer_at(tiny("llama"), ["full"], asked(precision="bf16", batch=8, accumulation=4))
    for name, fit in row.estimates.items():
        assert fit.largest_batch > 8
        question = asked(precision="bf16", batch=fit.largest_batch, accumulation=4)
        (again,) = _answer_at(tiny("llama"), ["full"], question)
        assert again.estimates[name].asked_bytes == fit.takes_bytes


@pytest.mark.parametrize("method", ["full", "galore", "lora"])
def test_few_batches_are_looked_at_where_the_optimizer_is_highest_at_small_ones(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A wide vocabulary: at two rows the highest moment is the optimizer's, and a row more adds nothing to it.
    network = tiny("llama", vocab_size=8192)
    looked: list[int] = []
    held = Composed.held

    def noted(composed: Composed, rows: int) -> Any:
        looked.append(rows)
        return held(composed, rows)

    monkeypatch.setattr(Composed, "held", noted)
    (row,) = _answer_at(network, [method], asked(precision="bf16", sequence=64))
    assert row.estimates["expected"].largest_batch > 10
    # The batch asked about, and for two estimates the last that fits, the first that does not, and some near them.
    assert len(set(looked)) < 12


def test_experts_in_one_parameter_are_said_not_to_be_adapted() -> None:
    found = answer_of("mixtral")
    assert any("gate_up_proj" in name for name in found.not_adapted)
    assert found.rows[0].trains == "adapters alone"


def answer_of(kind: str) -> FitsAnswer:
    from suites.lab import answer as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "find_network", lambda *_: tiny(kind))
        return answer("mixtral-8x7b-v0.1", ["lora"], asked(precision="bf16"), GIB, True)


@pytest.mark.parametrize("limit", [99, 400, 5017, 123_456])
@pytest.mark.parametrize("guess", [1, 3, 900, 10**6])
def test_the_largest_is_found_from_any_guess(limit: int, guess: int) -> None:
    def peak(rows: int) -> int:
        return max(100 + 20 * rows, 17 + 50 * rows, 70 * rows - 900)

    fitting = max((n for n in range(3000) if n and peak(n) <= limit), default=0)
    found = largest_near(peak, limit, guess, 20.0)
    assert found == (fitting, peak(fitting) if fitting else 0, peak(fitting + 1))
    assert largest_near(lambda rows: 1, 5, guess, 1.0, most=64) == (64, 1, None)


def test_a_layer_more_is_found_and_said_again() -> None:
    def said(layers: int) -> list[tuple[int, str]]:
        norms = [(4, "norm")] * (2 * layers + 1)
        loop = [(9, "a"), (7, "b"), (-9, "a")] * layers
        return [*norms, (4 * len(norms), "all"), *loop, (5, "end")]

    def kind(each: tuple[int, str]) -> str:
        return each[1]

    spans = splice.new_spans(said(1), said(2), kind)
    assert sum(map(len, spans)) == 5
    extended = [said(2)[place] for place in lines.again(len(said(2)), spans, 4)]
    assert [kind for _, kind in extended] == [kind for _, kind in said(5)]
    with pytest.raises(splice.NotPeriodicError):
        splice.new_spans(said(1), [*said(2), (1, "new")], kind)
    # Two stretches that grow next to one another, the first of them a run.
    fewer, more = [4, 4, 2, 2, 2, 7, 8], [4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 7, 8]
    grown = [more[place] for place in lines.again(len(more), splice.new_spans(fewer, more), 3)]
    assert grown == [4] * 8 + [2] * 12 + [7, 8]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lama-3.1-8b", "--fits", "24GiB"), "nearest: llama-3.1-8b"),
        (("smollm2-135m", "lora", "--fits", "24"), "has no unit"),
        (("smollm2-135m", "lora", "--fits", "0GiB"), "must be above 0"),
        (("smollm2-135m", "lora", "--fits", "8GiB", "--train", "all"), "unknown train 'all'"),
        (("roberta-large", "lora", "--fits", "8GiB", "--train", "pretrain"), "is an encoder"),
        (("smollm2-135m", "lora", "--fits", "8GiB", "--base-bits", "3"), "base_bits 3: must be 4"),
        (("smollm2-135m", "full", "--fits", "8GiB", "--base-bits", "4"), "trains the weights themselves"),
        (("smollm2-135m", "lora", "--fits", "8GiB", "--targets", "q_prj"), "'q_prj' matches no linear layer"),
        (("smollm2-135m", "lora", "--fits", "8GiB", "--rank", "4000"), "rank 4000"),
        (("smollm2-135m", "lora", "--fits", "8GiB", "--length", "9000"), "has 8192 positions"),
        (("smollm2-135m", "lora", "--json"), "--json: only with --fits"),
        (("smollm2-135m", "lora", "--base-bits", "4"), "ask with --fits"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: tuple[str, ...], words: str, refused: Refused) -> None:
    assert words in refused(*arguments)


def test_an_unknown_name_among_several_is_refused_before_any_is_traced(
    monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setattr("suites.lab.fits_command.in_processes", lambda *_, **__: pytest.fail("traced"))
    line = refused("llama-3.2-1b,mistral-7b", "lora", "--fits", "24GiB")
    assert "unknown model 'mistral-7b'" in line
    assert "nearest: mistral-7b-v0.3" in line


def test_a_hub_out_of_reach_is_said_at_once_with_its_cause(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    def silent(*_: object, **__: object) -> None:
        time.sleep(5)
        raise OSError("timed out")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    start = time.monotonic()
    line = refused("mistralai/Mistral-7B-v9", "lora", "--fits", "24GiB")
    assert time.monotonic() - start < 2
    assert "Network is unreachable" in line
    assert "mistral-7b-v0.3" in line
    monkeypatch.setattr(socket, "create_connection", silent)
    start = time.monotonic()
    assert "no answer within 1.5 s" in refused("mistralai/Mistral-7B-v9", "lora", "--fits", "24GiB")
    assert time.monotonic() - start < 2
    assert "--offline was asked for" in refused("some/model", "lora", "--offline")


def test_the_answer_is_a_table_and_json() -> None:
    arguments = ["memory", "smollm2-135m", "lora", "galore", "--fits", "4GiB", "--rank", "8", "--length", "64"]
    table = CliRunner().invoke(app, arguments)
    assert table.exit_code == 0, table.output
    for words in (
        "fine-tuning",
        "rank 8",
        "bf16",
        "64 tokens",
        "adapters alone",
        "accelerate estimate-memory",
        "bfloat16",
        "a step of 1 row",
        "largest batch, in rows a step",
    ):
        assert words in table.stdout.replace("\n", " "), words
    said = CliRunner().invoke(app, [*arguments, "--json"])
    (found,) = (FitsAnswer.model_validate(each) for each in json.loads(said.stdout))
    assert [row.method for row in found.rows] == ["lora", "galore"]
    assert found.rows[0].estimates["expected"].largest_batch > 1
    # Of several models one table more says what stands in the tables of each.
    other = found.model_copy(
        update={"model": "other", "rows": [found.rows[0].model_copy(update={"refused": "no"}), found.rows[1]]}
    )
    table = overview([found, other], "4GiB")
    assert [str(column.header) for column in table.columns] == ["method", found.model, "other"]
    first, second = (list(column.cells) for column in table.columns[1:])
    assert first[0] == f"yes, {found.rows[0].estimates['expected'].largest_batch}"
    assert second == ["-", first[1]]
