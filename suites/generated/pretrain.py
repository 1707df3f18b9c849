"""Rebuild the micro encoder: masked-language modelling on the generated language, one thread, one seed.

    python -m suites.generated.pretrain [--folder FOLDER] [--seed N]

Every document starts with `<s>`. In a share of the documents the connective that introduces it is a word to be
predicted, and `<s>` stands in its place as a mask would: so `<s>` learns to sum up the document. A run that was stopped
goes on from its last checkpoint and ends in the same weights.
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
import safetensors
import torch
import transformers

from suites.generated import encoder_path
from suites.generated.discourse import Document, document
from suites.generated.language import Dice
from suites.generated.tokenizer import BOS, EOS, MASK, MAX_TOKENS, PAD, SPECIAL, save, vocabulary

IGNORED = -100
BLOCK = 8
CHECKPOINT_EVERY = 500
_RECORD, _CHECKPOINT = "pretraining.json", "checkpoint.pt"


@dataclasses.dataclass(frozen=True)
class Round:
    """One pass of training with its own optimizer and learning rate; `asked` is the share of asked connectives."""

    steps: int
    lr: float
    warmup_steps: int
    mix: str
    asked: float
    masked_when_asked: float
    quiet_steps: int = 0
    asked_when_quiet: float = 0.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the language itself.

    The first round is quiet about connectives at its start, and the others ask for little else, mostly between
    sentences that must be compared word by word: a model that already fills a gap in one sentence from the other
    learns quickly to tell how they differ, and one that does not hardly learns it at all.
    """

    seed: int = 1
    rounds: tuple[Round, ...] = (
        Round(7000, 2e-3, 300, "broad", 0.7, 0.05, quiet_steps=2664, asked_when_quiet=0.1),
        Round(3000, 1e-3, 100, "comparing", 0.9, 0.0),
        Round(4000, 1e-3, 100, "comparing", 0.9, 0.0),
    )
    batch: int = 64  # of every round
    weight_decay: float = 0.01
    masked: float = 0.2
    hidden: int = 96
    layers: int = 3
    heads: int = 4
    intermediate: int = 384

    @property
    def steps(self) -> int:
        """Steps of all rounds."""
        return sum(part.steps for part in self.rounds)

    def at(self, step: int) -> tuple[Round, int]:
        """The round of a step, and the step within it."""
        for part in self.rounds:
            if step < part.steps:
                return part, step
            step -= part.steps
        raise AssertionError("a step past the last round")


def config(recipe: Recipe) -> transformers.RobertaConfig:
    """A small RoBERTa; dropout is for fine-tuning, pre-training runs without."""
    return transformers.RobertaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.intermediate,
        max_position_embeddings=MAX_TOKENS + 2,
        type_vocab_size=1,
        initializer_range=0.05,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def encode(item: Document, words: dict[str, int], ask: bool) -> tuple[list[int], int | None]:
    """Token ids of a document, and the id of its connective where that is asked for."""
    first = [words[word] for word in item.first.split()]
    tail = [] if item.second is None else [EOS, *(words[word] for word in item.second.split()), EOS]
    asked = words[item.connective] if ask and item.connective is not None else None
    return [BOS, *first, EOS, *tail], asked


def block(recipe: Recipe, index: int, words: dict[str, int]) -> list[list[tuple[list[int], int | None]]]:
    """`BLOCK` batches of documents of like length, decided by recipe and index alone."""
    dice = Dice("micro pretraining", recipe.seed, index)
    part, inside = recipe.at(index * BLOCK)
    share = part.asked_when_quiet if inside < part.quiet_steps else part.asked
    coded = [encode(document(dice, part.mix), words, dice.chance(share)) for _ in range(BLOCK * recipe.batch)]
    coded.sort(key=lambda pair: len(pair[0]))
    return dice.shuffled([coded[i : i + recipe.batch] for i in range(0, len(coded), recipe.batch)])


def mask(
    coded: list[tuple[list[int], int | None]],
    shares: tuple[float, float],
    vocabulary_size: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, attention mask and targets (B, T): of the chosen words 70 % masked, 15 % replaced, 15 % left.

    `shares` are those of the words chosen in an ordinary document, and in one whose connective is asked for: there it
    is the target at `<s>`, and few words are chosen, so that it can be told.
    """
    width = max(len(ids) for ids, _ in coded)
    clean = torch.tensor([ids + [PAD] * (width - len(ids)) for ids, _ in coded])
    share = torch.tensor([[shares[0] if asked is None else shares[1]] for _, asked in coded])
    chosen = (torch.rand(clean.shape, generator=generator) < share) & (clean >= len(SPECIAL))
    fate = torch.rand(clean.shape, generator=generator)
    anything = torch.randint(len(SPECIAL), vocabulary_size, clean.shape, generator=generator)
    inputs = torch.where(chosen & (fate < 0.7), MASK, clean)
    inputs = torch.where(chosen & (fate >= 0.7) & (fate < 0.85), anything, inputs)
    targets = torch.where(chosen, clean, IGNORED)
    targets[:, 0] = torch.tensor([IGNORED if asked is None else asked for _, asked in coded])
    return inputs, (clean != PAD).long(), targets


def objective(
    model: transformers.RobertaForMaskedLM, inputs: torch.Tensor, attention: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Mean cross entropy of the masked words, plus that of the connectives."""
    hidden = model.roberta(input_ids=inputs, attention_mask=attention).last_hidden_state
    chosen = targets != IGNORED
    losses = torch.nn.functional.cross_entropy(model.lm_head(hidden[chosen]), targets[chosen], reduction="none")
    at_head = torch.zeros_like(chosen)
    at_head[:, 0] = True
    head = at_head[chosen]
    return torch.stack([part.mean() for part in (losses[~head], losses[head]) if part.numel()]).sum()


def rate(part: Round, step: int) -> float:
    """Learning rate at a step of a round: linear warm-up, then linear decay to zero."""
    warm = (step + 1) / part.warmup_steps
    left = (part.steps - step) / max(1, part.steps - part.warmup_steps)
    return part.lr * min(1.0, warm, left)


def _start(recipe: Recipe) -> transformers.RobertaForMaskedLM:
    torch.manual_seed(recipe.seed)
    model = transformers.RobertaForMaskedLM(config(recipe))
    model.eval()
    return model


def _optimizer(model: transformers.RobertaForMaskedLM, recipe: Recipe) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True)


def pretrain(recipe: Recipe, folder: pathlib.Path) -> tuple[transformers.RobertaForMaskedLM, list[tuple[int, float]]]:
    """Train by the recipe, with a checkpoint in `folder` now and then; returns the model and its loss curve.

    Raises:
        ValueError: the folder holds a checkpoint of another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = vocabulary()
    model = _start(recipe)
    optimizer = _optimizer(model, recipe)
    curve: list[tuple[int, float]] = []
    saved, begin = folder / _CHECKPOINT, 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        if state["recipe"] != dataclasses.asdict(recipe):
            raise ValueError(f"{saved} is of another recipe; remove it or give another folder")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        begin, curve = state["step"], state["curve"]
    total, count = 0.0, 0
    batches: list[list[tuple[list[int], int | None]]] = []
    for step in rich.progress.track(range(begin, recipe.steps), "pre-training", show_speed=False):
        if step % BLOCK == 0 or not batches:
            batches = block(recipe, step // BLOCK, words)
        part, inside = recipe.at(step)
        if inside == 0:
            optimizer = _optimizer(model, recipe)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        shares = (recipe.masked, part.masked_when_asked)
        batch = mask(batches[step % BLOCK], shares, len(words), generator)
        for group in optimizer.param_groups:
            group["lr"] = rate(part, inside)
        loss = objective(model, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total, count = total + loss.item(), count + 1
        if (step + 1) % 100 == 0:
            curve.append((step + 1, round(total / count, 4)))
            total, count = 0.0, 0
        if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < recipe.steps:
            _checkpoint(saved, recipe, model, optimizer, step + 1, curve)
    return model, curve


def _checkpoint(
    path: pathlib.Path,
    recipe: Recipe,
    model: transformers.RobertaForMaskedLM,
    optimizer: torch.optim.AdamW,
    step: int,
    curve: list[tuple[int, float]],
) -> None:
    state = {
        "recipe": dataclasses.asdict(recipe),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "curve": curve,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def write(
    model: transformers.RobertaForMaskedLM,
    folder: pathlib.Path,
    recipe: Recipe,
    curve: list[tuple[int, float]],
    seconds: float,
) -> None:
    """Weights (fp32), configuration, tokenizer and the record of how they were made; the checkpoint goes."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder))
    save(folder)
    record = {
        "command": "python -m suites.generated.pretrain",
        "recipe": dataclasses.asdict(recipe),
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "weights_dtype": "float32",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "documents": recipe.steps * recipe.batch,
        "loss_curve": curve,
        "last_session_s": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "safetensors": safetensors.__version__,
        },
        "note": "generated language; checks pipeline and ordering of methods, never the paper's numbers",
    }
    (folder / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / _CHECKPOINT).unlink(missing_ok=True)


def main() -> None:
    """Command line: pre-train and write the encoder."""
    default = Recipe()
    parser = argparse.ArgumentParser(prog="python -m suites.generated.pretrain", description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, default=encoder_path())
    parser.add_argument("--seed", type=int, default=default.seed)
    given = vars(parser.parse_args())
    folder: pathlib.Path = given.pop("folder")
    recipe = dataclasses.replace(default, **given)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    model, curve = pretrain(recipe, folder)
    write(model, folder, recipe, curve, time.perf_counter() - started)


if __name__ == "__main__":
    main()
