"""A word-level tokenizer for the generated language, with RoBERTa's special tokens and pair format."""

from __future__ import annotations

import pathlib

import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, processors

from suites.generated import lexicon

BOS, PAD, EOS, UNK, MASK = range(5)
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
MAX_TOKENS = 64


def vocabulary() -> dict[str, int]:
    """Word to id: the special tokens first, then the words in alphabetical order."""
    return {word: index for index, word in enumerate((*SPECIAL, *lexicon.words()))}


def build() -> transformers.PreTrainedTokenizerFast:
    """The tokenizer: whitespace words, `<s> a </s>` and `<s> a </s></s> b </s>`."""
    core = tokenizers.Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.RobertaProcessing(("</s>", EOS), ("<s>", BOS), False, False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )


def save(folder: pathlib.Path) -> None:
    """Write the tokenizer's files, for `AutoTokenizer.from_pretrained(folder)`."""
    build().save_pretrained(str(folder))
