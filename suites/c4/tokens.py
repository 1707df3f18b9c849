"""Tokenizers of the pre-training suite: the protocol's, a local file, one trained on the data, or the micro source's.

All are `tokenizers` files used in one way: no start token, one end token after every document; markers of special
tokens inside a text are read as text.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library that the hub client uses
from tokenizers import decoders, models, pre_tokenizers, trainers

from baselines.registry import checked_name
from results.store import StoreError, write_atomically
from suites.generated import text as generated
from suites.text.rows import Stamp, stamp

# The protocol's tokenizer; the commit is the one that public repositories quote for it.
PINNED = {"t5-base": ("google-t5/t5-base", "a9723ea7f1b39c1eae772870f3b547bf6ef7e6c1")}
MICRO = "micro"
BPE = "bpe:"
LEAST_BPE = 257
END_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")
END = END_NAMES[0]
CHUNK = 1024


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer made ready.

    Attributes:
        core: the library's tokenizer.
        digest: sha256 of its file's content.
        end: id of the token after every document; it also fills up padded sequences, where nothing looks at it.
        size: 1 + the largest id that a document can hold: what the model's embedding must have.
    """

    core: tokenizers.Tokenizer = field(compare=False)
    digest: str
    end: int
    size: int

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Return each text's tokens, the end token after them.

        Raises:
            ValueError: a token beyond `size`.
        """
        found = []
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            for coded in self.core.encode_batch_fast(chunk, add_special_tokens=False):
                found.append(np.array([*coded.ids, self.end], np.int32))
        largest = max((int(ids.max()) for ids in found), default=0)
        if largest >= self.size:
            raise ValueError(f"token {largest}: the tokenizer gives it, but its vocabulary ends at {self.size - 1}")
        return found

    def save(self, folder: Path) -> None:
        """Write the files that transformers' `AutoTokenizer` reads."""
        from transformers import PreTrainedTokenizerFast

        wrapped = PreTrainedTokenizerFast(tokenizer_object=self.core, eos_token=self.core.id_to_token(self.end))
        wrapped.save_pretrained(str(folder))

    def covered_bytes(self, texts: Sequence[str]) -> list[npt.NDArray[np.int64]]:
        """Return for each token of `encode` the bytes of the raw text between the token before it and its own end.

        They add up to the text's bytes, but for what follows the last token; the end token covers none.
        """
        found = []
        for text in texts:
            before = np.concatenate([[0], np.cumsum([len(letter.encode()) for letter in text])])
            ends = [end for _, end in self.core.encode(text, add_special_tokens=False).offsets]
            reached = np.maximum.accumulate(before[np.array([0, *ends], np.int64)])
            found.append(np.append(np.diff(reached), 0).astype(np.int64))
        return found


def local(path: Path) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`, or of the folder that holds one.

    Raises:
        ValueError: not there, not a tokenizers file, or without an end token.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        return _local_at(file, str(path), stamp([file]))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"tokenizer {path}: cannot be read; must be a tokenizer.json or a folder with one") from error


@lru_cache(maxsize=4)
def _local_at(file: Path, name: str, version: Stamp) -> Tokenizer:
    return ready(file.read_text(encoding="utf-8"), name)


@lru_cache(maxsize=1)
def micro() -> Tokenizer:
    """Return the tokenizer of the generated source: a token a word."""
    words = {word: index for index, word in enumerate((END, *generated.source().words))}
    core = tokenizers.Tokenizer(models.WordLevel(words, unk_token=END))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return ready(core.to_str(), MICRO)


@lru_cache(maxsize=2)
def from_hub(name: str, offline: bool) -> Tokenizer:
    """Return a pinned tokenizer of the hub.

    Raises:
        ValueError: unknown name; the hub does not answer, or may not be asked.
    """
    repository, revision = PINNED[checked_name(name, PINNED, "tokenizer")]
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(repository, "tokenizer.json", revision=revision, local_files_only=offline)
    except (OSError, HTTPError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
        raise ValueError(
            f"tokenizer {name!r} cannot be had from the hub: {reason}; give one with --tokenizer"
        ) from error
    return ready(Path(file).read_text(encoding="utf-8"), name)


def trained(size: int, texts: Callable[[], Sequence[str]], data_key: str) -> Tokenizer:
    """Return a byte-level BPE of at most `size` entries trained on `texts`, from the cache where it was trained before.

    Args:
        data_key: names the texts; the cache key is a hash of it, the size and the library's version.

    Raises:
        ValueError: `size` leaves no room for the bytes and the end token.
    """
    if size < LEAST_BPE:
        raise ValueError(f"tokenizer '{BPE}{size}': must have at least {LEAST_BPE} entries (nearest: {BPE}{LEAST_BPE})")
    key = hashlib.sha256(f"{data_key}/{size}/{tokenizers.__version__}".encode()).hexdigest()[:16]
    return _trained(size, texts, key)


@lru_cache(maxsize=4)
def _kept(file: Path, modified_ns: int) -> Tokenizer:
    return ready(file.read_text(encoding="utf-8"), str(file))


def _trained(size: int, texts: Callable[[], Sequence[str]], key: str) -> Tokenizer:
    file = cache_folder() / f"bpe-{size}-{key}.json"
    if file.is_file():
        return _kept(file, file.stat().st_mtime_ns)
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    core.train_from_iterator(texts(), trainer)
    content = core.to_str()
    try:
        write_atomically(file, content.encode())
    except StoreError:
        # Only a cache: where it cannot be written, every process trains the same tokenizer again.
        pass
    return ready(content, f"{BPE}{size}")


def cache_folder() -> Path:
    """Return where trained tokenizers are kept: $GNLORP_CACHE, or `gnlorp` in the user's cache."""
    given = os.environ.get("GNLORP_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gnlorp"


def ready(content: str, name: str) -> Tokenizer:
    """Return the tokenizer of a file's content.

    Raises:
        ValueError: not a tokenizers file, or none of `END_NAMES` is in it.
    """
    try:
        core = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # noqa: BLE001  the library raises the bare class for a file it cannot read
        raise ValueError(f"tokenizer {name}: no file of the tokenizers library: {error}") from error
    core.no_truncation()
    core.no_padding()
    core.encode_special_tokens = True
    known = core.get_vocab(with_added_tokens=True)
    end = next((known[name] for name in END_NAMES if name in known), None)
    if end is None:
        raise ValueError(f"tokenizer {name}: has no end token; one of {', '.join(END_NAMES)} is needed")
    special = {index for index, token in core.get_added_tokens_decoder().items() if token.special}
    size = 1 + max(index for index in {*known.values()} - special | {end})
    return Tokenizer(core, hashlib.sha256(content.encode()).hexdigest(), end, size)
