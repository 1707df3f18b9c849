"""What other libraries do to a model that has layers of this package: refused in words where they could not do it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn

RESIZE = "resize_token_embeddings"


@dataclass(frozen=True)
class ResizeRefused:
    """Stands for `resize_token_embeddings` of a transformers model whose head or embedding is one of our layers.

    The method makes a plain embedding and a plain head anew. It has replaced the embedding before it finds a head that
    it does not know, and would leave a model of two vocabularies.
    """

    layer: str

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raise RuntimeError that says what to do."""
        raise RuntimeError(
            f"{RESIZE}: {self.layer} is one of the model's embeddings or its head, which would be made anew without "
            "its factors; call it before attach, or merge the model first (gnlorp.merge), resize, attach again, and "
            "make a new optimizer"
        )


def guard_resize(model: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...]) -> None:
    """Let every model in `model` refuse to resize its embeddings while one of them, or the head, is of these kinds."""
    for module in model.modules():
        if not callable(getattr(type(module), RESIZE, None)):
            continue
        ours = [layer for layer in _embeddings(module) if isinstance(layer, kinds)]
        if ours:
            vars(module)[RESIZE] = ResizeRefused(f"a {type(ours[0]).__name__}")
        elif isinstance(vars(module).get(RESIZE), ResizeRefused):
            del vars(module)[RESIZE]


def _embeddings(module: Any) -> Iterable[object]:
    for name in ("get_input_embeddings", "get_output_embeddings"):
        find = getattr(module, name, None)
        try:
            yield find() if callable(find) else None
        except (NotImplementedError, AttributeError):  # a model without embeddings of its own
            continue


def not_scriptable(layer: nn.Module) -> NoReturn:
    """Raise RuntimeError: `torch.jit.script` compiles source text, which a layer with a backward of its own has not."""
    raise RuntimeError(
        f"torch.jit.script of a {type(layer).__name__}: its backward is written by hand; merge the model first "
        "(gnlorp.merge), or use torch.jit.trace, torch.export or torch.compile, which take it as it is"
    )
