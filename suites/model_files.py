"""The files of a model's folder: which of them decide what is loaded, and the digest that names them."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spm.model",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "bpe.codes",
    "tekken.json",
)
TOKENIZER_FILES = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def folder_digest(folder: Path) -> str:
    """Return sha256 over "sha256 name" lines of all that a model is loaded from: configuration, weights, every shard of
    them, and tokenizer.

    Raises:
        ValueError: no configuration, weights or tokenizer; a shard that the index names is not there.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"model folder {folder}: has no config.json")
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise ValueError(
            f"model folder {folder}: has no tokenizer, every word would be unknown: one of {', '.join(VOCABULARIES)} "
            "is needed (tokenizer.save_pretrained writes it)"
        )
    tokens = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    paths = [folder / "config.json", *_weight_files(folder), *tokens]
    lines = [f"{_sha256(path, path.stat().st_mtime_ns)} {path.name}\n" for path in sorted(paths)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"model folder {folder}: holds none of {', '.join(WEIGHTS)}")
    if path.suffix != ".json":
        return [path]
    try:
        shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: is no index of weights") from error
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{path}: names {missing[0]}, which is not in the folder")
    return [path, *(folder / name for name in shards)]


def weights_digest(folder: Path) -> str:
    """Return sha256 of the weights of a folder that comes with a package."""
    (path,) = _weight_files(folder)
    return _sha256(path, path.stat().st_mtime_ns)


@cache
def _sha256(path: Path, modified_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
