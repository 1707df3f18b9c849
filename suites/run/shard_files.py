"""A sharded run's checkpoint: every process writes its own shards, through torch.distributed.checkpoint.

Beside the file of a checkpoint stands a folder of the same step with the tensors; the file names its parts with their
digests, so that a checkpoint is whole or passed over as ever. Its tensors are put together anew for whoever reads them:
written by two processes, it loads on four, and on one that shards nothing.
"""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from suites.run.checkpoint import PARTIAL, CheckpointError, digests, parts_folder
from suites.run.distributed import Group

State = dict[str, Any]


def write(folder: Path, step: int, model: nn.Module, optimizer: Optimizer, group: Group) -> State:
    """Write every process's tensors after `step`; return what the checkpoint's file says of them.

    Raises:
        CheckpointError: a process could not write; on all of them.
    """
    dcp: Any = importlib.import_module("torch.distributed.checkpoint")

    target = parts_folder(folder, step)
    partial = target.with_name(f".{target.name}{PARTIAL}")
    problem = ""
    try:
        if group.leads:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        group.wait()
        dcp.save({"model": tensors_of(model), "optimizer": _tensors(model, optimizer)}, checkpoint_id=str(partial))
        if group.leads:
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
    except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
        problem = next(iter(str(error).splitlines()), type(error).__name__)
    found: list[Any] = [None] * group.size
    dist.all_gather_object(found, problem)
    if any(found):
        raise CheckpointError(
            f"checkpoint of step {step} cannot be written to {folder}: {next(filter(None, found))}; the earlier ones "
            "are whole: free space there, and the same command goes on from the newest"
        )
    return {"parts": digests(target) if group.leads else {}, "numbers": _numbers(model, optimizer)}


def read(folder: Path, state: State, model: nn.Module, optimizer: Optimizer) -> None:
    """Put the tensors of a checkpoint into a model and its optimizer, sharded in whatever way, or not."""
    dcp: Any = importlib.import_module("torch.distributed.checkpoint")

    prepare(model, optimizer)
    kept = state["numbers"]
    # A parameter that had no state yet has none again.
    for name, parameter in _held(model, optimizer):
        if name not in kept:
            optimizer.state.pop(parameter, None)
    found: dict[str, Any] = {"model": tensors_of(model), "optimizer": _tensors(model, optimizer)}
    with warnings.catch_warnings():
        # Of a process that reads alone, which is meant here.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(found, checkpoint_id=str(parts_folder(folder, state["step"])))
    model.load_state_dict(found["model"])
    for name, parameter in _held(model, optimizer):
        optimizer.state[parameter].update(kept.get(name, {}))
    counts = state["optimizer"]
    for group, said in zip(optimizer.param_groups, counts["groups"], strict=False):
        group.setdefault("initial_lr", said.get("initial_lr", group["lr"]))
    for name, value in counts["attributes"].items():
        setattr(optimizer, name, value)


OWN = ("skipped_steps", "_skips_in_a_row")


def counts_of(optimizer: Optimizer) -> State:
    """Return the few numbers that an optimizer keeps beside the state of its parameters."""
    groups = [{"initial_lr": group["initial_lr"]} if "initial_lr" in group else {} for group in optimizer.param_groups]
    attributes = {name: getattr(optimizer, name) for name in OWN if hasattr(optimizer, name)}
    return {"groups": groups, "attributes": attributes}


def prepare(model: nn.Module, optimizer: Optimizer) -> None:
    """Make an optimizer's whole state, so that there are tensors to load into."""
    own = getattr(optimizer, "prepare", None)
    if own is not None:
        own()
        return
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    # Its first act is a step with gradients of zero at learning rate 0.
    get_optimizer_state_dict(model, optimizer)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's tensors by name; what the layers keep beside parameters and buffers is among them."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _held(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[id(parameter)], parameter


def _tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    return {
        name: {key: value for key, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}
        for name, parameter in _held(model, optimizer)
        if optimizer.state.get(parameter)
    }


def _numbers(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in optimizer.state[parameter].items() if not isinstance(value, Tensor)}
        for name, parameter in _held(model, optimizer)
        if optimizer.state.get(parameter)
    }
