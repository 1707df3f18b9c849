"""The networks of the lab, from configurations alone: built in, from a local folder, or from the hub."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, RobertaConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from baselines.method import Work
from suites import models
from suites.c4.sizes import SIZES, llama_config
from suites.lab.named import check_hub, check_name, named, named_models

# Longer than pre-training needs, so that other lengths can be asked about; positions cost no memory.
LONGEST = 2048
BERT: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


def _roberta_base() -> RobertaConfig:
    return RobertaConfig(**BERT, vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)


BUILT_IN: dict[str, Callable[[], Any]] = {
    "roberta-base": _roberta_base,
    "bert-base": lambda: BertConfig(**BERT, vocab_size=30522),
    "minilm": lambda: BertConfig(**MINILM, vocab_size=30522),
    "micro": lambda: AutoConfig.from_pretrained(str(models.micro_folder())),
    **{name: partial(llama_config, name, positions=LONGEST) for name in SIZES},
}
RANK = 8
NOT_OF_LAYERS = ("architectures", "eos_token_id", "pos_att_type")


@dataclass(frozen=True)
class Network:
    """A configuration, and whether it is a language model (every parameter outside the targets is trained) or an
    encoder with a two-class head (the head alone is trained beside the targets)."""

    name: str
    config: Any
    language_model: bool

    @property
    def layers(self) -> int | None:
        """Return the number of layers where a shallower copy can be made, else None."""
        count = getattr(self.config, "num_hidden_layers", None)
        return count if isinstance(count, int) and len(set(self.kinds)) <= 1 else None

    @property
    def kinds(self) -> tuple[tuple[object, ...], ...]:
        """Return what the configuration says of each layer alone (its attention, whether it has positions)."""
        count = getattr(self.config, "num_hidden_layers", 0)
        return tuple(zip(*self._of_layers().values(), strict=True)) or ((),) * count

    def _of_layers(self) -> dict[str, Sequence[object]]:
        count = getattr(self.config, "num_hidden_layers", 0)
        return {
            name: value
            for name, value in vars(self.config).items()
            if isinstance(value, (list, tuple)) and len(value) == count and name not in NOT_OF_LAYERS
        }

    @cached_property
    def parameters(self) -> int:
        """Return how many values the model has, tied ones once."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.model().parameters())

    @property
    def work(self) -> Work:
        """Return what a model is trained for where nothing is asked: C4's sizes from the start, others further."""
        return "pre-training" if self.language_model and self.name in SIZES else "fine-tuning"

    @property
    def rank(self) -> int:
        """Return the rank of a comparison unless another is asked for: GaLore's, a quarter of the width, or 8."""
        if not self.language_model:
            return RANK
        size = SIZES.get(self.name)
        return size.rank if size is not None and size.rank else max(1, self.config.hidden_size // 4)

    def model(self, layers: int | Sequence[int] | None = None) -> nn.Module:
        """Return the model in training mode, on whatever device or mode is active; with fewer layers where told.

        Args:
            layers: how many of the first, or which.

        Raises:
            ValueError: transformers rejects the configuration.
        """
        config = copy.deepcopy(self.config)
        if layers is not None:
            chosen = range(layers) if isinstance(layers, int) else layers
            for name, values in self._of_layers().items():
                setattr(config, name, [values[index] for index in chosen])
            config.num_hidden_layers = len(chosen)
        # No step of training hands keys and values on to a next one.
        config.use_cache = False
        kind: Any = AutoModelForCausalLM if self.language_model else AutoModelForSequenceClassification
        # The warning that weights are fresh is what the lab wants.
        logging.set_verbosity_error()
        try:
            model = kind.from_config(config, dtype=torch.float32)
        except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, RuntimeError) as error:
            raise ValueError(f"model {self.name!r}: transformers rejects its configuration: {_line(error)}") from error
        assert isinstance(model, nn.Module)
        return model.train()

    def batch(self, rows: int, length: int) -> dict[str, Tensor]:
        """Return a batch without padding.

        Raises:
            ValueError: no row, or a length that the model has no positions for.
        """
        for what, value in (("batch", rows), ("sequence", length)):
            if value < 1:
                raise ValueError(f"{what} {value}: must be at least 1 (nearest allowed value: 1)")
        positions = getattr(self.config, "max_position_embeddings", None)
        if positions is not None:
            # RoBERTa's first positions belong to padding.
            positions -= (self.config.pad_token_id or 0) + 1 if "roberta" in self.config.model_type else 0
            if length > positions:
                raise ValueError(
                    f"sequence {length}: {self.name} has {positions} positions (nearest allowed value: {positions})"
                )
        tokens = (torch.arange(rows * length) % (self.config.vocab_size - 5) + 5).view(rows, length)
        labels = tokens if self.language_model else torch.zeros(rows, dtype=torch.int64)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def find_network(name: str, offline: bool = False) -> Network:
    """Return the network called `name`: built in (a LLaMA size also as `llama-60m`), known by name, a folder with
    config.json, or a hub name.

    Raises:
        ValueError: unknown, a folder without a configuration, or one that transformers rejects.
    """
    short = name.removeprefix("llama-")
    if short in BUILT_IN:
        return _network(short, BUILT_IN[short]())
    known = named(name)
    if known:
        said = dict(named_models()[known].config)
        return _network(known, AutoConfig.for_model(said.pop("model_type"), **said))
    check_name(name, BUILT_IN)
    check_hub(name, offline)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=offline)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ValueError(f"model {name!r}: transformers rejects its configuration: {_line(error)}") from error
    return _network(Path(name).name, config)


def _network(name: str, config: Any) -> Network:
    models.check_whole(name, config)
    _check_heads(name, config)
    kinds = " ".join(config.architectures or [])
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model {name!r}: {config.model_type} is an encoder with a decoder; allowed are encoders and causal models"
        )
    if any(word in kinds for word in ("CausalLM", "LMHeadModel")):
        return Network(name, config, language_model=True)
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return Network(name, config, not (encoder or any(word in kinds for word in ("Classification", "MaskedLM"))))


def _check_heads(name: str, config: Any) -> None:
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    groups = getattr(config, "num_key_value_heads", None)
    if hidden is None or heads is None:
        raise ValueError(f"model {name!r}: its configuration has no hidden_size or no num_attention_heads")
    free = getattr(config, "head_dim", None) not in (None, hidden // max(1, heads))
    if heads < 1 or (hidden % heads and not free):
        near = min((n for n in range(1, hidden + 1) if hidden % n == 0), key=lambda n: abs(n - heads))
        raise ValueError(
            f"model {name!r}: num_attention_heads {heads} must divide hidden_size {hidden} "
            f"(nearest allowed value: {near})"
        )
    if groups and heads % groups:
        near = min((n for n in range(1, heads + 1) if heads % n == 0), key=lambda n: abs(n - groups))
        raise ValueError(
            f"model {name!r}: num_key_value_heads {groups} must divide num_attention_heads {heads} "
            f"(nearest allowed value: {near})"
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
