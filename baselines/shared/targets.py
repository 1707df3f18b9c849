"""Which layers methods work on and which other parameters stay trainable: one answer for every method.

Layers are named in full, so that a pattern such as `output.dense`, which also matches `attention.output.dense`, leaves
no doubt in the record about what was matched.
"""

from __future__ import annotations

from torch import nn

from baselines.method import Placement

ATTENTION = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
)
MLP = ("intermediate.dense", "output.dense", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
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
        endings = sorted({".".join(part for part in name.split(".")[-2:] if not part.isdigit()) for name in layers})
        raise ValueError(
            f"target pattern {missing[0]!r} matches no linear layer of {type(model).__name__}: allowed are the sets "
            f"{', '.join(SETS)} or endings such as {', '.join(endings[:8])}"
        )
    return tuple(matched)


def place(model: nn.Module, targets: str, train_rest: bool) -> Placement:
    """Return where methods work in `model`.

    Args:
        targets: as for `match_layers`.
        train_rest: True for pre-training (every parameter outside the targets stays trainable with plain AdamW),
            False for fine-tuning (only the task's head and the pooler do).
    """
    layers = match_layers(model, targets)
    frozen = {f"{name}.weight" for name in layers} | {f"{name}.bias" for name in layers}
    prefix = backbone_prefix(model)
    trained = tuple(
        name for name, _ in model.named_parameters() if name not in frozen and (train_rest or is_head(name, prefix))
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
