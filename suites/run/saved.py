"""A trained model kept: merged or its adapters alone, as safetensors, with a card of the record's numbers; to the hub.

A model's folder is whole or not there: it is written under another name and moved.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines.method import Placement, trainable
from baselines.registry import get_method
from results.schema import Plan, Record
from results.store import MODELS, read_records
from suites.config import config_of
from suites.resolved import Resolved
from suites.run.build import Built, build
from suites.run.distributed import Group
from suites.run.shard import gathered_state
from suites.suite import Beside, Job

ADAPTERS, SETTINGS, RECORD, CARD = "adapters.safetensors", "adapters.json", "record.json", "README.md"


def folder_of(store: Path, plan: Plan) -> Path:
    """Return where a run's model stands."""
    return store / MODELS / plan.label


def save(built: Built, job: Job, case: Resolved, beside: Beside) -> None:
    """Write the trained model as `beside` says. Uses up `built` where it is merged.

    Of a sharded run every process must call it; the one that leads writes.
    """
    assert beside.folder is not None
    model = _whole_model(built, job, case)
    if model is None:
        return
    target = folder_of(beside.folder, case.plan)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if beside.model == "adapters":
        _write_adapters(model, job.placement, case, partial)
    else:
        merged: Any = case.method.merge(model)
        merged.save_pretrained(str(partial))
    job.beside(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _whole_model(built: Built, job: Job, case: Resolved) -> nn.Module | None:
    """Return the trained model, of a sharded run put together anew on the CPU; None on a process that does not lead."""
    group = case.runtime.group
    if group.shard is None:
        return built.model
    state = gathered_state(built.model, group.leads)
    if not group.leads:
        return None
    alone = replace(case, runtime=replace(case.runtime, group=Group()))
    model = build(job.model(), job.placement, alone, torch.device("cpu")).model
    model.load_state_dict(state)
    return model


def _write_adapters(model: nn.Module, placement: Placement, case: Resolved, folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in trainable(model).items()}
    save_file(tensors, str(folder / ADAPTERS), metadata={"format": "pt"})
    settings = {
        "method": case.plan.method,
        "method_config": case.plan.method_config,
        "targets": placement.targets,
        "trained": placement.trained,
        "base_model": case.plan.model.model_dump(mode="json", exclude_none=True),
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")


def load_adapters(model: nn.Module, folder: Path) -> nn.Module:
    """Return `model`, the base model that a run started from, with the adapters in `folder` attached and filled.

    `get_method(...).merge` makes an ordinary model of it.

    Raises:
        ValueError: no adapters in the folder, or not of this model.
    """
    from safetensors.torch import load_file

    if not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder}: holds no {SETTINGS}: --save-model adapters writes it")
    said = json.loads((folder / SETTINGS).read_text())
    method = get_method(said["method"])
    placement = Placement(tuple(said["targets"]), tuple(said["trained"]))
    method.attach(model, placement, config_of(method, said["method_config"]))
    tensors = load_file(str(folder / ADAPTERS))
    wanted = set(trainable(model))
    if wanted != set(tensors):
        odd = sorted(wanted ^ set(tensors))[0]
        raise ValueError(f"{folder}: its adapters are not of this model: {odd} is on one side alone")
    model.load_state_dict(tensors, strict=False)
    return model


def describe(store: Path, record: Record) -> None:
    """Put record and card into the folder of a run's model, where it has one."""
    folder = folder_of(store, record.plan)
    if not folder.is_dir():
        return
    (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n")
    (folder / CARD).write_text(card(record, _pipeline(folder)))


def _pipeline(folder: Path) -> str:
    """Return the hub's name for what a saved model does; "other" for adapters alone."""
    path = folder / "config.json"
    if not path.is_file():
        return "other"
    kinds = json.loads(path.read_text()).get("architectures") or []
    return "text-generation" if any("CausalLM" in kind for kind in kinds) else "text-classification"


def card(record: Record, pipeline: str) -> str:
    """Return the model card of a run: what was trained on what, and the record's numbers."""
    from huggingface_hub import EvalResult, ModelCardData

    plan, last = record.plan, record.evaluations[-1]
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=plan.data.name,
            dataset_name=plan.task,
            dataset_split=name.partition("/")[0],
            metric_type=name.partition("/")[2],
            metric_value=value,
        )
        for name, value in last.metrics.items()
        if value is not None
    ]
    base = plan.model.name if plan.model.source == "hub" else None
    data = ModelCardData(
        model_name=plan.label, base_model=base, library_name="transformers", pipeline_tag=pipeline, eval_results=results
    )
    return f"---\n{data.to_yaml()}\n---\n\n# {plan.label}\n\n{_body(record)}"


def _body(record: Record) -> str:
    plan, training = record.plan, record.plan.training
    method = get_method(plan.method)
    rows: dict[str, Any] = {
        "method": f"{method.title}" + (f" (arXiv {method.arxiv})" if method.arxiv else ""),
        "settings": ", ".join(f"{name} = {value}" for name, value in plan.method_config.items()) or "none",
        "start": f"{plan.model.name} ({plan.model.source}, digest {plan.model.digest or plan.model.revision})",
        "data": f"{plan.data.name} ({plan.data.source}), task {plan.task}, seed {plan.seed}",
        "steps": f"{training.steps} of {training.batch_size} rows, learning rate {training.learning_rate:g}",
    }
    rows |= {name: value for name, value in record.evaluations[-1].metrics.items()}
    if record.memory is not None and record.memory.step_peak is not None:
        rows["optimizer state, bytes"] = record.memory.state_bytes
        rows["peak of a step, bytes"] = record.memory.step_peak.total_bytes
    if record.timing is not None:
        rows["wall time, s"] = round(record.timing.wall_s, 1)
    lines = "".join(f"| {name} | {'undefined' if value is None else value} |\n" for name, value in rows.items())
    notes = [
        *([] if plan.model.disclosure is None else [plan.model.disclosure]),
        *(record.data.notes if record.data else []),
    ]
    told = "".join(f"- {note}\n" for note in notes)
    return f"| | |\n| --- | --- |\n{lines}\n{told}\nThe run's whole record: `{RECORD}`.\n"


def published(records: Sequence[Record], store: Path, repository: str, api: Any = None) -> Mapping[str, str]:
    """Put the models of runs that ended well into a private repository of the hub; return plan label -> place there.

    One model stands at its root; of several each in a folder of its own, for `from_pretrained(..., subfolder=...)`.

    Raises:
        ValueError: the hub refuses, or does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library that the hub client uses

    hub = HfApi() if api is None else api
    kept = [record.plan for record in records if folder_of(store, record.plan).is_dir() and record.status == "ok"]
    places: dict[str, str] = {}
    try:
        if kept:
            hub.create_repo(repository, private=True, exist_ok=True)
        for plan in kept:
            inside = None if len(kept) == 1 else plan.label
            folder = folder_of(store, plan)
            hub.upload_folder(
                repo_id=repository, folder_path=str(folder), path_in_repo=inside, commit_message=plan.label
            )
            places[plan.label] = repository if inside is None else f"{repository}/{inside}"
    except (OSError, ValueError, HTTPError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"push-to-hub {repository!r}: {reason}; the models stand in {store / MODELS}") from error
    return places


def push(plans: Sequence[Plan], store: Path, repository: str) -> list[str]:
    """Put the models of these plans into a repository of the hub, and return a line that says where each stands.

    Raises:
        ValueError: see `published`.
    """
    wanted = {plan.hash() for plan in plans}
    records = [record for record in read_records([store]) if record.plan_hash in wanted]
    return [f"{label}: {place}" for label, place in published(records, store, repository).items()]


def without_model(plans: Sequence[Plan], todo: Sequence[Plan], store: Path) -> str | None:
    """Return a line about the plans that are done and have left no model; None where there is none."""
    waiting = {plan.hash() for plan in todo}
    count = sum(plan.hash() not in waiting and not folder_of(store, plan).is_dir() for plan in plans)
    if not count:
        return None
    where = store / MODELS
    return f"{count} of the runs have a record and no model in {where}: they are not run again; give another --out"
