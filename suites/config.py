"""Settings of a suite: defaults, then a profile's TOML delta, then the command line; resolved per task and method.

Precedence, weakest first: the defaults of the suite's `Settings`; the published protocol, for a profile that follows it
(`protocol = true`); the profile's table for the suite; its `rank.<n>` table; the tuned file beside the profile; the
command line. Inside each, `size.<model>` (where the model's name is that of the strongest layer), then `task.<name>`,
then `method.<name>`, then `size.<model>.method.<name>` and `task.<name>.method.<name>` override the values above them
for single runs. What stands in `search` is laid over a layer for the runs of a search alone.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from baselines.method import Method, MethodConfig
from baselines.registry import checked_name, get_method, methods
from results.protocols import Statement, read_protocols
from suites.recompute import Part, parts
from suites.typed import PROFILE_NAMES as PROFILE_NAMES

PROFILES = Path(__file__).parent / "profiles"
PUBLISHED = ("paper", "fair")
"Profiles at the scale of published runs."
TABLES = ("rank", "task", "method", "size", "search")
LISTS = ("methods", "tasks")
"Which methods and tasks a comparison has that names none; in `search`: those of a search."
OTHERS = (*TABLES, *LISTS, "default_rank")
"What stands in a layer beside settings."
INSIDE: dict[str, tuple[str, ...]] = {
    "rank": ("search", "size", "task", "method", *LISTS),
    "search": ("size", "task", "method", *LISTS),
    "size": ("method",),
    "task": ("method",),
    "method": (),
}
"What a run reads of `OTHERS` inside a table of each kind."
ORDER = "task.<task>.method.<method>.<setting> or size.<model>.method.<method>.<setting>"
DEFAULT_RANK = 8
LITERAL = "literal_error"
"What pydantic calls a value that is none of a few."
T = TypeVar("T", bound=BaseModel)
Layer = Mapping[str, Any]
"A table of settings, with tables of more of them inside."


def _names(given: Any) -> Any:
    """Split names that are joined by commas."""
    return tuple(filter(None, map(str.strip, given.split(",")))) if isinstance(given, str) else given


class Settings(BaseModel):
    """What a run of any suite can be told, before it is resolved to a plan; a suite adds its own in a subclass.

    Unknown names are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field(description="micro, minilm, a folder, or a hub name")
    source: Literal["micro", "directory", "hub"] = "hub"
    targets: str = "attention+mlp"
    max_length: int = Field(default=128, gt=0)
    train_rows: int | None = Field(default=None, gt=0)
    held_out: bool = Field(
        default=False, description="score a part of train that is kept from training, as a search does; not validation"
    )
    steps: int | None = Field(default=None, gt=0, description="optimizer steps; or give epochs")
    epochs: float | None = Field(default=None, gt=0)
    max_steps: int | None = Field(default=None, gt=0, description="cap on the steps that epochs amount to")
    batch_size: int = Field(default=16, gt=0)
    accumulation: int = Field(default=1, gt=0)
    learning_rate: float | None = Field(default=None, gt=0, description="default: the method's usual one")
    rest_learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="of what every method trains alike: the head; in pre-training also the rest",
    )
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    final_fraction: float = Field(default=0.0, ge=0, le=1, description="last learning rate over the peak one")
    warmup_fraction: float = Field(default=0.06, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float | None = Field(default=1.0, ge=0, description="0 = no clipping")
    clip_scope: Literal["all", "parameter"] = Field(
        default="all", description="clip by the norm over all gradients, or each parameter's by its own"
    )
    precision: Literal["fp32", "bf16", "bf16-autocast"] = "fp32"
    bf16_updates: Literal["nearest", "stochastic", "kahan", "master"] = Field(
        default="nearest",
        description="with precision bf16: round to the nearest (many updates are lost), stochastically, keep the rest "
        "(kahan), or keep fp32 values (master); all but nearest with fp32 moments for every method",
    )
    bf16_products: Literal["native", "fp32"] = Field(
        default="native",
        description="with precision bf16 on a processor without bf16 units: multiply in fp32 and round once, as units "
        "do, a tenth of the time; measured bytes stay native's",
    )
    state_bits: Literal[8, 32] = 32
    per_layer: bool = Field(default=False, description="step each parameter inside backward, and free its gradient")
    checkpointing: bool = Field(
        default=False, description="compute activations again in backward instead of keeping them"
    )
    recompute: Annotated[tuple[Part, ...], BeforeValidator(parts)] = Field(
        default=(), description="made again in backward, exactly: some of norms, mlp, loss (comma-joined or a list)"
    )
    tf32: bool = Field(default=False, description="fp32 products with 10 bits of mantissa, on a device that has them")
    compile: bool = Field(default=False, description="the model through torch.compile; measured bytes stay eager's")
    evaluations: int = Field(default=1, ge=1)
    equal: Literal["tokens", "memory"] = Field(
        default="tokens", description="tokens: one batch for all; memory: the largest within the smallest method's peak"
    )
    config: dict[str, Any] = Field(default={}, description="settings of the method itself")
    trials: int | None = Field(default=None, description="points that a search tries for every method in every round")
    rounds: int = Field(default=3, ge=1, description="the most rounds of a search, the first one included")
    confirm: int = Field(
        default=0,
        ge=0,
        description="a search runs a method's best trial again at the runs' own length, and where it gets worse by it "
        "the next best, at most so many; 0: none",
    )
    confirm_tasks: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(
        default=(), description="it does so on these tasks too, each to be better than the constant prediction there"
    )
    range: tuple[float, float] | None = Field(
        default=None, description="learning rates that a search goes over; default: the method's"
    )
    rest_range: tuple[float, float] | None = Field(
        default=None, description="of what every method trains alike; default: one range for all methods"
    )


S = TypeVar("S", bound=Settings)


def load_profile(name: str, suite: str, rank: int, tuned: bool = True) -> list[Layer]:
    """Return the profile's layers for a suite, weakest first: the published protocol where it follows one, its table,
    its rank table, and unless `tuned` is false its tuned table.

    Raises:
        ValueError: unknown profile, one without a table for the suite, or a rank that its protocol has no settings for.
    """
    table = _profile_table(name, suite)
    layers = [*_protocol_layers(table, suite, rank, name), table, table.get("rank", {}).get(str(rank), {})]
    choice = tuned_path(name, suite, rank)
    if tuned and choice.exists():
        layers.append(tomllib.loads(choice.read_text()))
    return layers


def _profile_table(name: str, suite: str) -> dict[str, Any]:
    """Return a profile's table for a suite; one that `extends` another lies over that one's, setting by setting."""
    checked_name(name, PROFILE_NAMES, "profile")
    table: dict[str, Any] | None = tomllib.loads(profile_path(name).read_text()).get(suite)
    if table is None:
        raise ValueError(f"profile {name!r} has no settings for suite {suite!r}")
    base = table.pop("extends", None)
    return table if base is None else {**_profile_table(base, suite), **table}


def _protocol_layers(table: dict[str, Any], suite: str, rank: int, profile: str) -> list[Layer]:
    """Return what a profile takes from the published protocol, a layer a statement; `searched` settings are left out.

    Takes `protocol` and `searched`, which say so, out of the table.
    """
    follows, searched = table.pop("protocol", False), table.pop("searched", [])
    if not follows:
        return []
    protocol = read_protocols()[suite]
    if protocol.ranks and rank not in protocol.ranks:
        near = min(protocol.ranks, key=lambda known: abs(known - rank))
        raise ValueError(
            f"rank {rank}: the protocol of profile {profile!r} ({protocol.source}) has settings for rank "
            f"{', '.join(map(str, protocol.ranks))} alone (nearest: {near}); other ranks: --profile small"
        )
    statements = [each for each in protocol.statements if not each.ranks or rank in each.ranks]
    return [_as_layer(each, protocol.places.removesuffix("s"), searched) for each in statements]


def _as_layer(statement: Statement, place: str, left_out: Iterable[str]) -> Layer:
    """Return a statement as a layer: its settings inside the tables of the methods, tasks or sizes that it names."""
    settings: dict[str, Any] = {}
    for name, value in statement.values.items():
        if name in left_out:
            continue
        inside, _, own = name.rpartition(".")
        (settings.setdefault(inside, {}) if inside else settings)[own] = value
    if not settings:
        return {}
    if statement.methods:
        settings = {"method": {method: settings for method in statement.methods}}
    return {place: {name: settings for name in statement.places}} if statement.places else settings


def default_rank(name: str, suite: str, model: str | None = None) -> int:
    """Return the rank of a comparison that names none: the profile's for the model's size, else for the suite.

    Raises:
        ValueError: unknown profile, or one without a table for the suite.
    """
    layers = load_profile(name, suite, DEFAULT_RANK)
    size = model or next((layer["model"] for layer in reversed(layers) if "model" in layer), None)
    found = [
        part["default_rank"]
        for layer in layers
        for part in (layer, layer.get("size", {}).get(size, {}))
        if "default_rank" in part
    ]
    return int(found[-1]) if found else DEFAULT_RANK


def profile_path(name: str) -> Path:
    """Return the file of a profile."""
    return PROFILES / f"{name}.toml"


def tuned_path(profile: str, suite: str, rank: int) -> Path:
    """Return the file that `suites tune` writes its choice to."""
    return PROFILES / f"{profile}.{suite}.rank{rank}.tuned.toml"


def check_table(
    table: Layer, kind: type[Settings], tasks: Iterable[str], where: str, inside: tuple[str, ...] = ()
) -> None:
    """Raise ValueError unless a layer names tasks and methods that exist, and settings of `kind`, at every level, and
    has each where it is read.

    Args:
        where: what the layer is called in the text, such as "--set".
        inside: kinds of the tables that the layer stands in, the outermost first.
    """
    known = {"task": list(tasks), "method": list(methods())}
    for name in table:
        _check_read(name, where, inside)
        if name not in OTHERS:
            checked_name(name, kind.model_fields, "setting")
        if name in LISTS:
            for each in _list(table, name, where):
                checked_name(each, known[name.removesuffix("s")], f"{name} in {where}")
        if name == "search":
            held = tables(table, name, "search.<setting>=value", where)
            check_table(held, kind, known["task"], where, (*inside, name))
        if name not in TABLES or name == "search":
            continue
        for key, settings in tables(table, name, f"{name}.<{name}>.<setting>=value", where).items():
            checked_name(key, known.get(name, [key]), f"{name} in {where}")
            if not isinstance(settings, dict):
                raise ValueError(f"{where} {name}.{key}={settings!r}: must be {name}.{key}.<setting>=value")
            check_table(settings, kind, known["task"], where, (*inside, name))
    tables(table, "config", "config.<setting of a method>=value", where)


def _check_read(name: str, where: str, inside: tuple[str, ...]) -> None:
    """Raise ValueError for one of `OTHERS` that no run would read where it stands."""
    if name not in OTHERS or not inside or name in INSIDE[inside[-1]] or (*inside, name) == ("size", "default_rank"):
        return
    what = f"{where}: {name} inside {'.'.join(inside)} is read by no run"
    if name in LISTS:
        raise ValueError(f"{what}: the whole comparison has one list (nearest allowed: {name}=[...])")
    if name == "default_rank":
        raise ValueError(f"{what}: a rank is of the whole comparison (nearest allowed: --rank)")
    raise ValueError(f"{what}: tables stand inside each other as {ORDER}")


def tables(settings: Layer, name: str, form: str, where: str) -> Layer:
    """Return the table called `name`, empty where there is none.

    Raises:
        ValueError: it is no table; the text says the form it must have.
    """
    value = settings.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"{where} {name}={value!r}: must be {form}")
    return value


def _list(table: Layer, name: str, where: str) -> list[str]:
    found = table[name]
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        raise ValueError(f"{where} {name}={found!r}: must be a list of names, one at least")
    return found


def listed(layers: Iterable[Layer], name: str) -> tuple[str, ...]:
    """Return the list called `name` of the strongest layer that has it, empty where none has."""
    return tuple(next((layer[name] for layer in reversed(list(layers)) if name in layer), ()))


def resolve(kind: type[S], layers: Iterable[Layer], task: str, method: str) -> S:
    """Merge `layers`, weakest first, to settings of `kind` for one task and method.

    Raises:
        ValueError: an unknown or invalid setting, naming it, its value and the rule.
    """
    layers = list(layers)
    merged: dict[str, Any] = {}
    model = next((layer["model"] for layer in reversed(layers) if "model" in layer), None)
    for layer in layers:
        by_size = layer.get("size", {}).get(model, {})
        by_task = layer.get("task", {}).get(task, {})
        for part in (
            layer,
            by_size,
            by_task,
            layer.get("method", {}).get(method, {}),
            by_size.get("method", {}).get(method, {}),
            by_task.get("method", {}).get(method, {}),
        ):
            plain = {key: value for key, value in part.items() if key not in OTHERS}
            # A length given in one unit replaces the one that a weaker layer gave in the other.
            for given, replaced in (("steps", "epochs"), ("epochs", "steps")):
                if given in plain and replaced not in plain:
                    merged.pop(replaced, None)
            config = {**merged.get("config", {}), **plain.get("config", {})}
            merged = {**merged, **plain} | ({"config": config} if config else {})
    return validated(kind, merged, "setting")


def validated(kind: type[T], values: Mapping[str, Any], what: str) -> T:
    """Return `kind(**values)`, with pydantic's complaint turned into one line.

    Raises:
        ValueError: an unknown name (with the known ones and the nearest) or a value outside its rule.
    """
    for name in values:
        checked_name(name, kind.model_fields, what)
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        allowed = _literals(kind.model_fields[str(first["loc"][0])].annotation) if first["type"] == LITERAL else ()
        near = f" (nearest allowed value: {_nearest(first['input'], allowed)})" if allowed else ""
        raise ValueError(f"{what} {name} = {first['input']!r}: {first['msg'].lower()}{near}") from error


def _literals(annotation: Any) -> tuple[Any, ...]:
    """Return the values that a type names."""
    parts = get_args(annotation)
    return parts if get_origin(annotation) is Literal else tuple(each for part in parts for each in _literals(part))


def _nearest(given: object, allowed: tuple[Any, ...]) -> Any:
    if isinstance(given, (int, float)) and all(isinstance(each, (int, float)) for each in allowed):
        return min(allowed, key=lambda each: abs(each - given))
    return difflib.get_close_matches(str(given).lower(), map(str, allowed), n=1, cutoff=0.0)[0]


def method_config(method: str, rank: int, overrides: Mapping[str, Any]) -> MethodConfig:
    """Return a method's settings in a comparison at `rank`, with `overrides` on top.

    Raises:
        ValueError: unknown method or setting, value outside its rule.
    """
    chosen = get_method(method)
    base = chosen.configure(rank)
    return config_of(chosen, {**base.model_dump(), **overrides})


def config_of(method: Method[Any], values: Mapping[str, Any]) -> MethodConfig:
    """Return a method's settings from those that a plan holds.

    Raises:
        ValueError: unknown setting, or value outside its rule.
    """
    found: MethodConfig = validated(method.config_type, values, f"{method.name} setting")
    return found
