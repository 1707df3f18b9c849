"""Rebuild the micro decoder: next-word prediction on counting stories and sums, one thread, one seed.

    python -m suites.generated.decoder_pretrain [--folder FOLDER]

It never sees a question: to answer one is what fine-tuning teaches it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import pathlib
import platform
import time

import rich.progress
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers

from suites.generated import decoder_path
from suites.generated.language import Dice
from suites.generated.problems import END, PAD, statement, words

LENGTH = 48
POSITIONS = 128


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the stories themselves."""

    seed: int = 1
    steps: int = 2000
    batch: int = 16
    learning_rate: float = 3e-3
    warmup_steps: int = 200
    weight_decay: float = 0.01
    hidden: int = 96
    layers: int = 3
    heads: int = 4
    intermediate: int = 256


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return the tokenizer: whitespace words, no special token added."""
    core = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words())}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
    )


def config(recipe: Recipe) -> transformers.LlamaConfig:
    """Return a small LLaMA with an untied head."""
    return transformers.LlamaConfig(
        vocab_size=len(words()),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )


def batch(recipe: Recipe, step: int, ids: dict[str, int]) -> torch.Tensor:
    """Return the tokens (B, T) of a step: statements one after the other, an end token after each."""
    dice = Dice("micro decoder", recipe.seed, step)
    rows = []
    for _ in range(recipe.batch):
        row: list[int] = []
        while len(row) < LENGTH:
            row += [*(ids[word] for word in statement(dice).split()), END]
        rows.append(row[:LENGTH])
    return torch.tensor(rows)


def pretrain(recipe: Recipe) -> tuple[transformers.LlamaForCausalLM, list[tuple[int, float]]]:
    """Train by the recipe; return the model and its loss curve."""
    torch.manual_seed(recipe.seed)
    model = transformers.LlamaForCausalLM(config(recipe)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    ids = {word: index for index, word in enumerate(words())}
    curve: list[tuple[int, float]] = []
    total = 0.0
    for step in rich.progress.track(range(recipe.steps), "pre-training", show_speed=False):
        warm = (step + 1) / recipe.warmup_steps
        left = (recipe.steps - step) / (recipe.steps - recipe.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, warm, left)
        tokens = batch(recipe, step, ids)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
        if (step + 1) % 100 == 0:
            curve.append((step + 1, round(total / 100, 4)))
            total = 0.0
    return model.eval(), curve


def write(
    model: transformers.LlamaForCausalLM,
    folder: pathlib.Path,
    recipe: Recipe,
    curve: list[tuple[int, float]],
    seconds: float,
) -> None:
    """Write weights (fp32), configuration, tokenizer, and the record of how they were made."""
    model.save_pretrained(str(folder))
    tokenizer().save_pretrained(str(folder))
    record = {
        "command": "python -m suites.generated.decoder_pretrain",
        "recipe": dataclasses.asdict(recipe),
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss_curve": curve,
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__},
        "note": "generated language; checks pipeline and ordering of methods, never the paper's numbers",
    }  # fmt: skip
    (folder / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Command line: pre-train and write the decoder."""
    parser = argparse.ArgumentParser(prog="python -m suites.generated.decoder_pretrain", description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, default=decoder_path())
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    given = parser.parse_args()
    recipe = dataclasses.replace(Recipe(), steps=given.steps)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    model, curve = pretrain(recipe)
    write(model, given.folder, recipe, curve, time.perf_counter() - started)


if __name__ == "__main__":
    main()
