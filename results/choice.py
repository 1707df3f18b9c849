"""A value that must be one of a few: the text of the refusal names them and the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class ChoiceError(ValueError):
    """A value that is not among the allowed ones; the text lists them and the nearest."""


def check_choice(value: object, allowed: Sequence[object], what: str) -> None:
    """Raise ChoiceError, naming the allowed values and the nearest, unless `value` is one of them."""
    if value in allowed:
        return
    texts = [str(item) for item in allowed]
    near = difflib.get_close_matches(str(value), texts, n=1, cutoff=0.3)
    hint = f"; nearest: {near[0]}" if near else ""
    raise ChoiceError(f"unknown {what} {value!r}: known are {', '.join(texts)}{hint}")
