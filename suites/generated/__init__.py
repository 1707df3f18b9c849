"""A generated language, tasks in it, and a small encoder and decoder pre-trained on it.

The `micro` profile checks the pipeline and the ordering of methods on a machine without GPU or network. Its scores are
about this generated language: they are never the paper's numbers, and never comparable with real GLUE.
"""

from __future__ import annotations

import pathlib

NOTICE = "micro: generated language; checks the pipeline, never the paper's numbers"


def encoder_path() -> pathlib.Path:
    """Folder of the committed encoder and its tokenizer, for `from_pretrained`."""
    return pathlib.Path(__file__).resolve().parent / "encoder"


def decoder_path() -> pathlib.Path:
    """Folder of the committed decoder and its tokenizer, for `from_pretrained`."""
    return pathlib.Path(__file__).resolve().parent / "decoder"
