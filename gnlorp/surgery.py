"""Layers put in the place of others, and what other libraries do to a model that has them: refused in words where they
could not do it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def swap(model: nn.Module, made: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the place of others, under every name that the model has for them."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in made:
            model.set_submodule(name, made[module])


def carry_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let the hooks that users put on `old` act on `new`."""
    for name in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
        getattr(new, name).update(getattr(old, name))
    for name in ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
        getattr(new, name).update(getattr(old, name))


def guard_resize(model: nn.Module, kind: type[nn.Module]) -> None:
    """Let every model in `model` refuse to resize its embeddings while one of them, or the head, is of this kind."""
    for module in model.modules():
        if not callable(getattr(type(module), RESIZE, None)):
            continue
        ours = [layer for layer in _embeddings(module) if isinstance(layer, kind)]
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
