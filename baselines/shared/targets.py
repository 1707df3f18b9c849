"""Which layers methods work on and which other parameters stay trainable: one answer for every method.

Layers are named in full, so that a pattern such as `output.dense`, which also matches `attention.output.dense`, leaves
no doubt in the record about what was matched.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from baselines.method import Placement

ATTENTION = (
    # BERT, RoBERTa, ELECTRA; LLaMA, Mistral, Qwen, Gemma.
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    # DeBERTa; DistilBERT; ModernBERT; OPT, BART and CLIP; Phi; Phi-3; GPT-NeoX.
    "attention.self.query_proj",
    "attention.self.key_proj",
    "attention.self.value_proj",
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "attn.Wqkv",
    "attn.Wo",
    "self_attn.out_proj",
    "encoder_attn.q_proj",
    "encoder_attn.k_proj",
    "encoder_attn.v_proj",
    "encoder_attn.out_proj",
    "self_attn.dense",
    "self_attn.qkv_proj",
    "attention.query_key_value",
    "attention.dense",
)
MLP = (
    "intermediate.dense",
    "output.dense",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "ffn.lin1",
    "ffn.lin2",
    "mlp.Wi",
    "mlp.Wo",
    "fc1",
    "fc2",
    "mlp.gate_up_proj",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
)
ATTENTION_ONLY_SUFFIX = ("attention.output.dense",)
SETS: dict[str, tuple[str, ...]] = {
    "attention+mlp": ATTENTION + MLP,
    "attention": ATTENTION,
    "mlp": MLP,
    "release-glue": ("query", "value", "key", "intermediate.dense", "output.dense"),
}


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of the backbone by full name; heads and poolers are no targets."""
    prefix = backbone_prefix(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(prefix) and not is_head(name, prefix)
    }


def match_layers(model: nn.Module, targets: str) -> tuple[str, ...]:
    """Return the full names of the linear layers that `targets` means.

    Args:
        targets: a set's name (`attention+mlp`, `attention`, `mlp`, `release-glue`) or comma-joined patterns, each
            matching the end of a layer's name at a dot.

    Raises:
        ValueError: a pattern matches no layer (sets may name layers of other architectures, but must match one).
    """
    layers = linear_layers(model)
    if targets in SETS:
        matched = [name for name in layers if any(_ends_with(name, pattern) for pattern in SETS[targets])]
        if targets == "mlp":
            matched = [name for name in matched if not any(_ends_with(name, end) for end in ATTENTION_ONLY_SUFFIX)]
        missing = [] if matched else [targets]
    else:
        patterns = [pattern.strip() for pattern in targets.split(",") if pattern.strip()]
        matched = [name for name in layers if any(_ends_with(name, pattern) for pattern in patterns)]
        missing = [pattern for pattern in patterns if not any(_ends_with(name, pattern) for name in layers)]
        missing = missing or ([] if patterns else [targets])
    if missing:
        endings = _endings(layers)
        if not endings:
            raise ValueError(
                f"{type(model).__name__}: has no linear layer in its backbone that a method could work on; the modules "
                f"with a matrix are {', '.join(_kinds(model)) or 'none'}"
            )
        raise ValueError(
            f"target pattern {missing[0]!r} matches no linear layer of {type(model).__name__}: allowed are the sets "
            f"{', '.join(SETS)} or endings such as {', '.join(endings[:8])}"
        )
    return tuple(matched)


def left_out(model: nn.Module, targets: str) -> tuple[str, ...]:
    """Return the endings of matrices of the backbone that a set means by its name and does not match.

    Linear layers, transformers' `Conv1D`, and the experts' matrices that stand in one parameter of three dimensions.
    Empty for patterns: they say themselves what is meant.
    """
    if targets not in SETS:
        return ()
    matched, prefix = set(match_layers(model, targets)), backbone_prefix(model)
    found = [name for name in linear_layers(model) if name not in matched]
    found += [
        name
        for name, module in model.named_modules()
        if type(module).__name__ == "Conv1D" and name.startswith(prefix) and not is_head(name, prefix)
    ]
    found += [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 3 and name.startswith(prefix) and not is_head(name, prefix)
    ]
    return _endings(name for name in found if targets not in _PARTS or _PARTS[targets] == _in_attention(name))


_PARTS = {"attention": True, "mlp": False}
"""Sets of one part of a block -> whether that part is the attention."""


def _in_attention(name: str) -> bool:
    return any("attn" in part or "attention" in part for part in name.lower().split("."))


def _endings(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({".".join(part for part in name.split(".")[-2:] if not part.isdigit()) for name in names}))


def _kinds(model: nn.Module) -> list[str]:
    return sorted({type(m).__name__ for m in model.modules() if any(p.ndim > 1 for p in m.parameters(recurse=False))})


def place(model: nn.Module, targets: str, train_rest: bool, train_head: bool = True) -> Placement:
    """Return where methods work in `model`.

    Args:
        targets: as for `match_layers`.
        train_rest: True for pre-training (every parameter outside the targets stays trainable with plain AdamW),
            False for fine-tuning (only the task's head and the pooler do).
        train_head: False where fine-tuning keeps the head that the model comes with, as a language model's.
    """
    layers = match_layers(model, targets)
    frozen = {f"{name}.weight" for name in layers} | {f"{name}.bias" for name in layers}
    prefix = backbone_prefix(model)
    trained = tuple(
        name
        for name, _ in model.named_parameters()
        if name not in frozen and (train_rest or (train_head and is_head(name, prefix)))
    )
    return Placement(targets=layers, trained=trained)


def is_head(name: str, prefix: str) -> bool:
    """Whether a module or parameter belongs to the task's head: outside the backbone, or in its pooler."""
    return not name.startswith(prefix) or ".pooler." in f".{name}."


def backbone_prefix(model: nn.Module) -> str:
    """Return the name prefix of the backbone ("roberta.", "model.", or "" for a bare backbone)."""
    attribute = str(getattr(model, "base_model_prefix", ""))
    return f"{attribute}." if attribute and hasattr(model, attribute) else ""


def shapes(model: nn.Module, names: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Return (O, I) of each named linear layer."""
    result = {}
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear), name
        result[name] = (layer.out_features, layer.in_features)
    return result


def _ends_with(name: str, pattern: str) -> bool:
    return name == pattern or name.endswith(f".{pattern}")
