"""Published memory claims, recomputed under every convention that the source could mean, with a verdict each."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from results.lab import Attempt, Claim, Recomputed, RecomputedClaims, Rule, Setting, read_claims
from suites.lab.conventions import Convention, Values, conventions, shapes_of, values_of
from suites.lab.fits import largest
from suites.lab.lab import Lab
from suites.lab.networks import find_network

SHOWN = 3
OVERHEAD_BYTES = 2**30
ORDER_BATCHES = (1, 4, 16)
UNIT = {"G": {True: 2**30, False: 10**9}, "M": {True: 2**20, False: 10**6}}
CUT_MODELS = ("60m", "130m", "350m", "1b", "7b", "roberta-base", "bert-base")
CUT_RANKS: dict[str, tuple[int, ...]] = {
    "60m": (128,), "130m": (256,), "350m": (256,), "1b": (512, 1024), "7b": (256, 512, 1024),
    "roberta-base": (4, 8), "bert-base": (4, 8),
}  # fmt: skip
BASELINES = {"bf16 AdamW": 2, "fp32 AdamW": 4, "8-bit AdamW": 1}
"""Bytes a moment of the optimizers that a cut could be meant against."""


def recompute(traces: bool = True) -> RecomputedClaims:
    """Return every claim's verdict; without `traces` those that need one are left out."""
    claims = read_claims()
    makers = {
        "cut of state": _cut,
        "fits": _fits,
        "order by estimate": _order_by_estimate,
        "order by peak": _order_by_peak,
    }
    traced = ("fits", "order by peak")
    found = [makers.get(claim.quantity, _estimate)(claim) for claim in claims if traces or claim.quantity not in traced]
    return RecomputedClaims(verdicts=found, rules=_rules(claims))


def lines_of(found: RecomputedClaims) -> Iterator[str]:
    """Yield one line a claim, then one a published table."""
    for verdict in found.verdicts:
        claim = verdict.claim
        yield f"{claim.id}: printed {claim.value:g} {claim.unit}; {verdict.words}"
    for rule in found.rules:
        yield f"{rule.table}: best single convention holds in {rule.holding} of {rule.cells} cells: {rule.convention}"


def size_of(quantity: str, convention: Convention, values: Values) -> float:
    """Return the bytes of what a claim speaks of."""
    weights, state = convention.weights(values), convention.state(values)
    return {"weights": weights, "state": state}.get(quantity, weights + state)


def prints_as(value: float, claim: Claim) -> bool:
    """Whether `value` prints as the claim does, rounded or cut off after its last decimal."""
    step = 10**claim.digits
    printed = round(claim.value * step)
    return printed in (round(value * step), math.floor(value * step + 1e-9))


def _tries(claim: Claim) -> Iterator[tuple[Convention, int, float]]:
    options = list(conventions(claim.state_bits, *_has(claim)))
    for rank in claim.ranks:
        values = values_of(claim.method, claim.model, rank)
        for convention in options:
            size = size_of(claim.quantity, convention, values)
            yield convention, rank, size / UNIT[claim.unit][convention.gibi]


def _has(claim: Claim) -> tuple[bool, bool]:
    """Return whether a claim's method has bases, and whether it has adapters beside its weights."""
    values = values_of(claim.method, claim.model, claim.ranks[0])
    return values.bases > 0, values.added > 0 and not values.replaces


def _estimate(claim: Claim) -> Recomputed:
    tries = [
        Attempt(convention=f"rank {rank}: {convention.words()}", value=round(value, 4), holds=prints_as(value, claim))
        for convention, rank, value in _tries(claim)
    ]
    return verdict_of(claim, _distinct(tries))


def _distinct(tries: Iterable[Attempt]) -> list[Attempt]:
    return list({attempt.convention: attempt for attempt in tries}.values())


def verdict_of(claim: Claim, tries: Sequence[Attempt], words: str = "", own: str = "") -> Recomputed:
    """Return the verdict over all attempts; `words` stands for what counting them cannot say, `own` is added."""
    holding = [attempt for attempt in tries if attempt.holds]
    nearest = sorted(tries, key=lambda attempt: abs(attempt.value - claim.value))
    shown = (holding or nearest)[:SHOWN]
    if not words:
        best = shown[0]
        said = f"reproduced by {len(holding)} of {len(tries)} conventions, among them"
        words = said if holding else f"reproduced by none of {len(tries)} conventions; nearest is {best.value:g} with"
        words += f" {best.convention}"
    return Recomputed(claim=claim, tried=len(tries), holding=len(holding), attempts=shown, words=words + own)


def _cut(claim: Claim) -> Recomputed:
    """Try every model, rank, projection and baseline: by how much is 8-bit state smaller than the baseline's?"""
    tries = []
    for model in CUT_MODELS:
        for rank in CUT_RANKS[model]:
            # Where it is the factors' gradients that are projected, the source could mean either rank.
            for projection in (rank // 2, rank) if values_of(claim.method, model, rank).added else (rank,):
                tries += list(_cuts(claim, model, rank, projection))
    return verdict_of(claim, _distinct(tries), own=_own_cut(claim))


def _own_cut(claim: Claim) -> str:
    """Say what this repository's own 8-bit state saves on the 7B model, by formula, which its count agrees with."""
    network = find_network("7b")
    own = Lab(network, claim.method, network.rank, "bf16").formula(8).state_bytes
    moments = 2 * shapes_of("7b")[0]
    cuts = " and ".join(
        f"{100 * (1 - own / (moments * BASELINES[name])):.1f} % against {name}" for name in ("bf16 AdamW", "fp32 AdamW")
    )
    return f"; this code's own state on 7b, rank {network.rank}: {cuts}"


def _cuts(claim: Claim, model: str, rank: int, projection: int) -> Iterator[Attempt]:
    values = values_of(claim.method, model, rank, projection)
    ranks = f"rank {rank}" + (f", projection rank {projection}" if values.added else "")
    for convention in conventions(8, bases=True, adapters=False):
        if convention.weight_bytes != 2 or convention.gibi:
            continue
        for baseline, width in BASELINES.items():
            everything = 2 * values.dense * width
            cut = 100 * (1 - convention.state(values) / everything)
            words = convention.words().removeprefix("bf16 weights, ").removesuffix(", GB")
            yield Attempt(
                convention=f"against {baseline} on {model}, {ranks}: {words}",
                value=round(cut, 2),
                holds=prints_as(cut, claim),
            )


def _fits(claim: Claim) -> Recomputed:
    """Say the largest batch of 256 tokens within the limit in GiB, by update and checkpointing."""
    network = find_network(claim.model)
    lab = Lab(network, claim.method, claim.ranks[0], "bf16", (8,))
    limit = int(claim.value * UNIT["G"][True])
    tries = []
    for per_layer, checkpointing in itertools.product((True, False), (True, False)):
        setting = Setting(
            model=network.name, method=claim.method, rank=lab.rank, batch=1, sequence=256, precision="bf16",
            state_bits=8, per_layer=per_layer, checkpointing=checkpointing,
        )  # fmt: skip

        def peak(rows: int, setting: Setting = setting) -> int:
            return lab.peak_bytes(setting.model_copy(update={"batch": rows}))

        one = peak(1)
        words = "per-layer updates" if per_layer else "ordinary updates"
        words += ", checkpointing" if checkpointing else ", no checkpointing"
        for taken, less in ((0, ""), (OVERHEAD_BYTES, " less 1 GiB of context and allocator")):
            rows = largest(peak, limit - taken)[0]
            text = f"{words}, {claim.value:g} GiB{less}: largest batch of 256 tokens (one takes {one / 2**30:.2f} GiB)"
            tries.append(Attempt(convention=text, value=rows, holds=rows >= 1))
    holding = [attempt for attempt in tries if attempt.holds]
    best = max(tries, key=lambda attempt: attempt.value)
    said = f"fits in {len(holding)} of {len(tries)} settings"
    said += f"; most rows: {best.value:g} with {best.convention}" if holding else f"; {best.convention}"
    return verdict_of(claim, tries, said).model_copy(update={"attempts": tries})


def _order_by_estimate(claim: Claim) -> Recomputed:
    assert claim.other is not None
    first, second = (values_of(name, claim.model, claim.ranks[0]) for name in (claim.method, claim.other))
    tries = []
    for convention in conventions(None, bases=True, adapters=False):
        sizes = [size_of("weights+state", convention, values) for values in (first, second)]
        difference = (sizes[0] - sizes[1]) / UNIT["M"][convention.gibi]
        tries.append(Attempt(convention=convention.words(), value=round(difference, 2), holds=difference < 0))
    same = _distinct(tries)
    holding = [attempt for attempt in same if attempt.holds]
    trained = Convention(2, 2, 2, True, "trained", False)
    frozen = Convention(2, 2, 2, True, "frozen", False)
    fair = (size_of("weights+state", trained, first) / 1e6, size_of("weights+state", frozen, second) / 1e6)
    words = f"{claim.method} below {claim.other} under {len(holding)} of {len(same)} conventions that treat the rest "
    words += "alike; with what each really trains (all of the model, or adapters alone), bf16: "
    words += f"{fair[0]:.0f} against {fair[1]:.0f} M"
    return verdict_of(claim, same, words)


def _order_by_peak(claim: Claim) -> Recomputed:
    """Say which of two methods has the higher peak as the batch grows: first gradients decide, then activations."""
    assert claim.other is not None
    network = find_network(claim.model)
    labs = {name: Lab(network, name, claim.ranks[0]) for name in (claim.method, claim.other)}
    tries = []
    for batch in ORDER_BATCHES:
        setting = Setting(model=network.name, method=claim.method, rank=claim.ranks[0], batch=batch, sequence=128)
        peaks = {name: lab.peak_bytes(setting.model_copy(update={"method": name})) for name, lab in labs.items()}
        difference = (peaks[claim.method] - peaks[claim.other]) / UNIT["G"][False]
        sizes = ", ".join(f"{name} {size / UNIT['G'][False]:.2f} GB" for name, size in peaks.items())
        text = f"batch {batch} x 128, fp32: {sizes}"
        tries.append(Attempt(convention=text, value=round(difference, 2), holds=difference > 0))
    holding = [attempt for attempt in tries if attempt.holds]
    words = f"{claim.method} above {claim.other} in {len(holding)} of {len(tries)} traced batches, those where the "
    words += "gradient of every weight, which the estimate leaves out, outweighs what the adapters keep for backward: "
    words += "; ".join(attempt.convention for attempt in tries)
    return verdict_of(claim, tries, words).model_copy(update={"attempts": tries})


def _rules(claims: Sequence[Claim]) -> list[Rule]:
    """Return, for each published table of estimates, the convention that reproduces the most of its cells."""
    tables: dict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        if claim.quantity in ("weights+state", "weights", "state") and "-table" in claim.id:
            tables[claim.source].append(claim)
    return [_rule(table, cells) for table, cells in tables.items()]


def _rule(table: str, cells: Sequence[Claim]) -> Rule:
    """Return the best of all conventions that say everything that any method of the table has, and every open rank."""
    prints = [{(rank, each) for each, rank, value in _tries(claim) if prints_as(value, claim)} for claim in cells]
    has = [_has(claim) for claim in cells]
    open_ranks = {claim.model: claim.ranks for claim in cells if len(claim.ranks) > 1}
    tries: dict[str, int] = {}
    for convention in conventions(cells[0].state_bits, *map(any, zip(*has, strict=True))):
        for ranks in itertools.product(*open_ranks.values()):
            said = dict(zip(open_ranks, ranks, strict=True))
            words = ", ".join([convention.words(), *(f"rank {rank} on {model}" for model, rank in said.items())])
            tries[words] = sum(
                (said.get(claim.model, claim.ranks[0]), convention.seen(*traits)) in printing
                for claim, traits, printing in zip(cells, has, prints, strict=True)
            )
    best = max(tries, key=lambda words: tries[words])
    return Rule(table=table, convention=best, cells=len(cells), holding=tries[best])
