"""What a run's state is: gathered for a checkpoint, put back from one, and its digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.shared.adamw import share_tables
from results.schema import CurvePoint, Evaluation
from suites.measure.environment import derived_seed
from suites.resolved import Resolved
from suites.run import checkpoint, eviction, shard_files
from suites.run.build import Built
from suites.run.checkpoint import CheckpointError
from suites.run.loop import Outcome
from suites.run.rounding import rule_of
from suites.run.shard import full


class Saver:
    """Writes a run's state to its folder as the runtime asks for, and puts the newest one back.

    State: weights and buffers, optimizer state, the random states of every process, and what the run has reached. The
    position in the data and the learning rate follow from the step. Without a folder nothing is written or read.
    `seconds`: () -> those that this process has spent on the run.
    """

    def __init__(
        self, folder: Path | None, case: Resolved, built: Built, out: Outcome, seconds: Callable[[], float]
    ) -> None:
        self._folder, self._plan, self._runtime = folder, case.plan, case.runtime
        self._model, self._optimizer, self._out, self._seconds = built.model, built.optimizer, out, seconds
        self._last = time.monotonic()

    def load(self) -> None:
        """Put the newest whole checkpoint back, if there is one.

        Raises:
            CheckpointError: it is of another plan or of another number of processes.
        """
        state = self._newest()
        if state is None:
            return
        group, folder = self._runtime.group, self._folder
        sharded = "parts" in state
        if len(state["random"]) != group.size and not sharded:
            raise CheckpointError(
                f"the checkpoint in {folder} was written by {len(state['random'])} processes, this run has "
                f"{group.size} (nearest allowed value: {len(state['random'])}), or --fresh to start anew"
            )
        if sharded:
            assert folder is not None
            shard_files.read(folder, state, self._model, self._optimizer)
        elif group.shard is not None:
            raise CheckpointError(
                f"the checkpoint in {folder} was written without --shard (nearest allowed: without it), or --fresh to "
                "start anew"
            )
        else:
            self._put_back(state)
        share_tables(self._optimizer)
        restore(self._out, state["outcome"])
        self._out.resumed_at.append(state["step"])
        if len(state["random"]) == group.size:
            set_random_state(state["random"][group.rank], self._runtime.device)
        else:
            warnings.warn(
                f"the checkpoint was written by {len(state['random'])} processes, this run has {group.size}: it goes "
                "on, with dropout drawn anew",
                stacklevel=2,
            )
            what = f"dropout from step {state['step']}"
            torch.manual_seed(derived_seed(self._plan.seed, what) + group.rank)

    def _newest(self) -> checkpoint.State | None:
        """Return the newest whole checkpoint; where processes read one together, the one that the first has found."""
        group, folder = self._runtime.group, self._folder
        if folder is None or group.shard is None:
            return None if folder is None else checkpoint.newest(folder, self._plan)
        found: checkpoint.State | None = checkpoint.newest(folder, self._plan) if group.leads else None
        said = 0 if not group.leads else -1 if found is None else int(found["step"])
        step = round(group.total(said, self._runtime.device))
        return found if group.leads or step < 0 else checkpoint.at_step(folder, step)

    def _put_back(self, state: checkpoint.State) -> None:
        self._model.load_state_dict(state["model"])
        rule = rule_of(self._optimizer)
        if rule is None:
            self._optimizer.load_state_dict(state["optimizer"])
        else:
            rule.load_state_dict(state["rounding"], state["optimizer"])

    def save(self, step: int) -> None:
        """Write a checkpoint after `step` if one is due; the last step needs none, its record is about to be written.

        Raises:
            CheckpointError: it cannot be written.
            Evicted: the process was asked to end; the state is saved, where there is a folder for it.
        """
        why = eviction.asked()
        if step == self._plan.training.steps:
            return
        if self._folder is not None and (why is not None or self._due(step)):
            self._write(self._folder, step)
        if why is not None:
            raise eviction.Evicted(f"{why}, after step {step}")

    def _write(self, folder: Path, step: int) -> None:
        group, device = self._runtime.group, self._runtime.device
        random = group.gathered(random_state(device), device)
        reached = dataclasses.replace(self._out, wall_s=self._out.wall_s + self._seconds())
        common: dict[str, Any] = {"random": random, "outcome": outcome_text(reached)}
        if group.shard is not None:
            parts = shard_files.write(folder, step, self._model, self._optimizer, group)
            common |= {**parts, "optimizer": shard_files.counts_of(self._optimizer)}
            if group.leads:
                checkpoint.save(folder, self._plan, step, common)
            group.wait()
        elif group.leads:
            state = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict(), **common}
            if (rule := rule_of(self._optimizer)) is not None:
                state["rounding"] = rule.state_dict()
            checkpoint.save(folder, self._plan, step, state)
        self._last = time.monotonic()

    def _due(self, step: int) -> bool:
        every = self._runtime.checkpoint_steps
        if every is not None:
            return step % every == 0
        late = time.monotonic() - self._last >= self._runtime.checkpoint_s
        return self._runtime.group.agreed(late, self._runtime.device)


def random_state(device: torch.device) -> Tensor:
    """Return the random state that dropout draws from on `device`, as bytes."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Put a random state back."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def outcome_text(out: Outcome) -> str:
    """Return what a run has reached as JSON."""
    held = {each.name: getattr(out, each.name) for each in dataclasses.fields(out)}
    held["evaluations"] = [each.model_dump(mode="json") for each in out.evaluations]
    held["curve"] = [each.model_dump(mode="json") for each in out.curve]
    return json.dumps(held)


def restore(out: Outcome, text: str) -> None:
    """Fill `out` with what `outcome_text` wrote."""
    held = json.loads(text)
    held["evaluations"] = [Evaluation.model_validate(each) for each in held["evaluations"]]
    held["curve"] = [CurvePoint.model_validate(each) for each in held["curve"]]
    for name, value in held.items():
        setattr(out, name, value)


def digest(model: nn.Module, optimizer: Optimizer) -> str:
    """Return sha256 over all weights and buffers and the optimizer's whole state: names, types, shapes and bytes."""
    total = hashlib.sha256()
    held = [*_leaves(model.state_dict(), "model"), *_leaves(optimizer.state_dict(), "optimizer")]
    rule = rule_of(optimizer)
    for name, value in [*held, *_leaves({} if rule is None else rule.state_dict(), "rounding")]:
        if isinstance(value, Tensor):
            value = full(value)
            total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            total.update(f"{name} {value!r}\n".encode())
    return total.hexdigest()


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _leaves(value[key], f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{name}.{index}")
    else:
        yield name, value
