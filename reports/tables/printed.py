"""Captions and notes as a paper prints them: without the words that only this repository knows."""

from __future__ import annotations

import re
from collections.abc import Iterable

WORDS: tuple[tuple[str, str], ...] = (
    (r", profile [\w.-]+", ""),
    (r"\bConvention: ", "Scores: "),
    (r"\. Checks the pipeline; not the paper's numbers", ". Generated data and a small model"),
    (r"^Checks the pipeline; not the paper's numbers$", "Generated data and a small model"),
    (r" \((?:directory|hub|micro)\)", ""),
    (r"\bmicro language\b", "generated language"),
    (r"\bmicro-encoder\b", "a small encoder"),
    (r" \(--seeds shared: [^)]*\)", ""),
    (r"\btracked bytes\b", "bytes of live tensors"),
    (r", said before the run", ""),
)
"""(what is written here, how a paper says it)."""
LEFT_OUT = ("Settings that differ within a task", "Code: commit", "Versions:", "All tasks and all parts in bytes")
"""How notes begin that are about files and code of this repository."""


def printed(text: str) -> str:
    """Return a caption or a note in the words of a paper."""
    for here, there in WORDS:
        text = re.sub(here, there, text)
    return text


def printed_notes(notes: Iterable[str]) -> list[str]:
    """Return the notes that a paper prints."""
    return [printed(note) for note in notes if not note.startswith(LEFT_OUT)]
