"""Which layers a set or a pattern means, and which other parameters stay trainable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from baselines.shared.targets import SETS, left_out, linear_layers, match_layers, place, shapes

Make = Callable[[str], nn.Module]
ENCODERS = ("bert", "roberta")


def endings(names: tuple[str, ...]) -> set[str]:
    """Return what follows the layer's number in each name."""
    return {".".join(name.split(".")[4:]) if ".layer." in name else name.split(".", 3)[-1] for name in names}


QUERY_KEY_VALUE = {"attention.self.query", "attention.self.key", "attention.self.value"}
LLAMA_ATTENTION = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
LLAMA_MLP = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}


@pytest.mark.parametrize("network", ENCODERS)
@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("attention", QUERY_KEY_VALUE | {"attention.output.dense"}),
        ("mlp", {"intermediate.dense", "output.dense"}),
        ("attention+mlp", QUERY_KEY_VALUE | {"attention.output.dense", "intermediate.dense", "output.dense"}),
        ("release-glue", QUERY_KEY_VALUE | {"attention.output.dense", "intermediate.dense", "output.dense"}),
        ("output.dense", {"attention.output.dense", "output.dense"}),
        ("attention.output.dense", {"attention.output.dense"}),
        ("query, value", {"attention.self.query", "attention.self.value"}),
        # A pattern ends at a dot: "dense" is neither the pooler's nor the head's.
        ("dense", {"attention.output.dense", "intermediate.dense", "output.dense"}),
    ],
)
def test_sets_and_patterns_on_encoders(network: str, targets: str, expected: set[str], make_network: Make) -> None:
    model = make_network(network)
    found = match_layers(model, targets)
    assert endings(found) == expected
    layers = model.config.num_hidden_layers
    assert len(found) == layers * len(expected)
    assert set(found) <= set(linear_layers(model))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("attention", LLAMA_ATTENTION),
        ("mlp", LLAMA_MLP),
        ("attention+mlp", LLAMA_ATTENTION | LLAMA_MLP),
        ("q_proj,down_proj", {"self_attn.q_proj", "mlp.down_proj"}),
    ],
)
@pytest.mark.parametrize("network", ["llama", "llama-lm", "llama-tied"])
def test_sets_and_patterns_on_llama(network: str, targets: str, expected: set[str], make_network: Make) -> None:
    found = match_layers(make_network(network), targets)
    assert endings(found) == expected
    assert len(found) == 2 * len(expected)


def test_one_layer_by_its_full_name(make_network: Make) -> None:
    name = "bert.encoder.layer.1.attention.self.key"
    assert match_layers(make_network("bert"), name) == (name,)


@pytest.mark.parametrize("network", ["bert", "roberta", "llama", "llama-lm", "llama-tied"])
def test_head_and_pooler_are_never_targets(network: str, make_network: Make) -> None:
    model = make_network(network)
    everything = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    heads = {name for name in everything if name.startswith(("classifier", "score", "lm_head")) or "pooler" in name}
    assert heads
    assert set(linear_layers(model)) == everything - heads


@pytest.mark.parametrize(
    ("network", "targets", "named"),
    [
        ("bert", "nosuch", "nosuch"),
        ("bert", "query,nosuch", "nosuch"),
        ("bert", "uery", "uery"),
        ("bert", "", ""),
        ("bert", " , ", " , "),
        ("bert", "pooler.dense", "pooler.dense"),
        ("bert", "classifier", "classifier"),
        ("roberta", "out_proj", "out_proj"),
        ("llama", "score", "score"),
        ("llama-tied", "lm_head", "lm_head"),
        ("llama", "release-glue", "release-glue"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(network: str, targets: str, named: str, make_network: Make) -> None:
    with pytest.raises(ValueError, match="matches no linear layer") as raised:
        match_layers(make_network(network), targets)
    text = str(raised.value)
    assert text.startswith(f"target pattern {named!r} ")
    assert "\n" not in text
    assert all(name in text for name in SETS)
    known = LLAMA_ATTENTION if network.startswith("llama") else {"self.query", "output.dense", "intermediate.dense"}
    assert all(ending in text for ending in known)


@pytest.mark.parametrize(
    ("network", "trained"),
    [
        ("bert", {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}),
        ("roberta", {f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")}),
        ("llama", {"score.weight"}),
        ("llama-lm", {"lm_head.weight"}),
        # The head is the embedding, which belongs to the backbone.
        ("llama-tied", set()),
    ],
)
def test_fine_tuning_trains_the_head_and_pooler(network: str, trained: set[str], make_network: Make) -> None:
    assert set(place(make_network(network), "attention", train_rest=False).trained) == trained


@pytest.mark.parametrize("network", ["bert", "llama", "llama-tied"])
def test_pre_training_trains_everything_outside_the_targets(network: str, make_network: Make) -> None:
    model = make_network(network)
    placement = place(model, "mlp", train_rest=True)
    inside = {
        name for name, _ in model.named_parameters() if name.startswith(tuple(f"{n}." for n in placement.targets))
    }
    assert set(placement.trained) == {name for name, _ in model.named_parameters()} - inside


def test_shapes_are_outputs_by_inputs(make_network: Make) -> None:
    model = make_network("bert")
    names = ("bert.encoder.layer.0.intermediate.dense", "bert.encoder.layer.0.output.dense")
    assert shapes(model, names) == {names[0]: (1024, 64), names[1]: (64, 1024)}


def tiny(architecture: str) -> nn.Module:
    """Return a network of an architecture from transformers, without weights."""
    import torch
    import transformers

    sizes = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
        "ffn_dim": 64, "word_embed_proj_dim": 32, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "num_local_experts": 2, "n_embd": 32, "n_layer": 2, "n_head": 4, "dim": 32, "hidden_dim": 64, "n_heads": 4,
        "num_key_value_heads": 2, "pad_token_id": 0, "n_layers": 2,
    }  # fmt: skip
    kind = getattr(transformers, f"{architecture}Config")
    known = {name: value for name, value in sizes.items() if name in kind().to_dict()}
    with torch.device("meta"):
        made: nn.Module = transformers.AutoModelForSequenceClassification.from_config(kind(**known))
    return made


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [("DebertaV2", 12), ("DistilBert", 12), ("ModernBert", 8), ("OPT", 12), ("Phi", 12), ("Phi3", 8), ("Bart", 32)],
)
def test_a_set_finds_every_linear_layer_under_other_names(architecture: str, layers: int) -> None:
    model = tiny(architecture)
    known = linear_layers(model)
    assert len(match_layers(model, "attention+mlp")) == len(known) == layers
    assert left_out(model, "attention+mlp") == ()
    assert set(match_layers(model, "attention")) | set(match_layers(model, "mlp")) == set(known)


@pytest.mark.parametrize(
    ("architecture", "targets", "names"),
    [
        ("Mixtral", "attention+mlp", ("experts.down_proj", "experts.gate_up_proj")),
        ("Mixtral", "attention", ()),
        ("MPNet", "attention+mlp", ("attn.k", "attn.o", "attn.q", "attn.v")),
        ("MPNet", "intermediate.dense", ()),
    ],
)
def test_what_a_set_leaves_out_is_named(architecture: str, targets: str, names: tuple[str, ...]) -> None:
    assert left_out(tiny(architecture), targets) == names


@pytest.mark.parametrize("network", ["bert", "roberta", "llama", "llama-lm", "llama-tied"])
def test_nothing_is_left_out_of_the_networks_of_the_suites(network: str, make_network: Make) -> None:
    assert left_out(make_network(network), "attention+mlp") == ()


@pytest.mark.parametrize(("architecture", "named"), [("GPT2", "Conv1D"), ("T5", "DenseReluDense.wi")])
def test_a_model_without_a_layer_for_a_set_is_refused_with_what_it_has(architecture: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        match_layers(tiny(architecture), "attention+mlp")


def test_fine_tuning_may_leave_the_head_of_a_language_model_alone(make_network: Make) -> None:
    assert place(make_network("llama-lm"), "attention", train_rest=False, train_head=False).trained == ()
