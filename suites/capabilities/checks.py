"""The checks: each trains tiny networks and returns what it found; none knows which method it looks at.

Equalities are checked in float64, where a real difference stands out from rounding: two runs count as equal when they
end less than `SAME` of the way that the weights went apart. Bit-for-bit claims are checked in float32.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from results.capabilities import Answer
from suites.capabilities.networks import DEVICE, make_batch, make_network
from suites.capabilities.subject import Refused, Subject, Trained, made
from suites.measure import live
from suites.run.per_layer import PerLayer

SAME = 1e-6
TINY = 1e-6
LEARNED = 0.9
STEPS = 12


class Found(NamedTuple):
    """An answer and why; `slow` where nothing else was wrong than that the loss did not fall far enough."""

    answer: Answer
    reason: str
    slow: bool = False


Find = Callable[[Subject, str], Found]


class Check(NamedTuple):
    """What finds an answer on a network, and the networks it looks at where not the usual ones."""

    find: Find
    networks: tuple[str, ...] = ()


def either(holds: bool, yes: str, no: str) -> Found:
    """Return yes with one reason, or no with the other."""
    return Found("yes", yes) if holds else Found("no", no)


def step(trained: Trained, parts: int = 1, share: float = 1.0, clip: float | None = None) -> float:
    """Do one optimizer step on the network's batch in `parts` micro-batches, loss times `share`; return the loss."""
    total = 0.0
    for part in _parts(make_batch(trained.network), parts):
        loss = trained.model(**part).loss
        (loss * (share / parts)).backward()
        total += float(loss.detach()) / parts
    if clip is not None:
        nn.utils.clip_grad_norm_(trained.model.parameters(), clip)
    trained.optimizer.step()
    trained.optimizer.zero_grad(set_to_none=True)
    return total


def apart(one: nn.Module, other: nn.Module, start: dict[str, Tensor]) -> float:
    """Return how far two trained networks are apart, over the way that the first one's weights went."""
    others = dict(other.named_parameters())
    pairs = [(value.detach(), others[name].detach(), start[name]) for name, value in one.named_parameters()]
    gap = sum(float((a - b).double().square().sum()) for a, b, _ in pairs)
    way = sum(float((a - s).double().square().sum()) for a, _, s in pairs)
    return (gap / way) ** 0.5 if way > 0 else float("inf")


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every parameter by name."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@torch.no_grad()
def logits(model: nn.Module, network: str) -> Tensor:
    """Return the network's output on its batch."""
    result: Tensor = model(**make_batch(network)).logits
    return result


def check_accumulation(subject: Subject, network: str) -> Found:
    """Three micro-batches give the step of one batch."""
    whole, split = (made(subject, network, dtype=torch.float64) for _ in range(2))
    start = weights(whole.model)
    for _ in range(4):
        step(whole)
        step(split, parts=3)
    gap = apart(whole.model, split.model, start)
    return either(gap < SAME, "3 micro-batches = one batch", f"3 micro-batches end {gap:.1e} of the way from one batch")


def check_clipping(subject: Subject, network: str) -> Found:
    """A gradient clipped by the common norm gives the step of the loss scaled by the same factor.

    The factors are powers of two, so that both gradients are the same to the bit: a method that rounds what it keeps
    (Muon to bfloat16, Q-GaLore to four bits) would tell apart gradients that differ in their last place.
    """
    clipped, scaled, free = (made(subject, network, dtype=torch.float64) for _ in range(3))
    start = weights(clipped.model)
    for factor in (0.5, 0.25, 0.125, 0.25):
        # torch divides the bound by the norm plus TINY.
        step(clipped, clip=factor * (_gradient_norm(clipped) + TINY))
        step(scaled, share=factor)
        step(free)
    gap, effect = apart(clipped.model, scaled.model, start), apart(clipped.model, free.model, start)
    if effect < SAME:
        return Found("no", "a clipped gradient trains like one that was not")
    return either(gap < SAME * effect, "clipped by the common norm", f"clipping ends {gap:.1e} of the way off")


def check_rate(subject: Subject, network: str) -> Found:
    """At learning rate 0 nothing moves; at half the rate the first step is half as long."""
    whole, half, still = (made(subject, network, dtype=torch.float64) for _ in range(3))
    start = weights(whole.model)
    for trained, share in ((whole, 1.0), (half, 0.5), (still, 0.0)):
        for group in trained.optimizer.param_groups:
            group["lr"] = group["lr"] * share
        step(trained)
    moved = [name for name, value in still.model.named_parameters() if not torch.equal(value, start[name])]
    if moved:
        return Found("no", f"{len(moved)} parameters move at learning rate 0")
    off = abs(apart(whole.model, half.model, start) - 0.5)
    return either(off < SAME, "follows each group's rate", f"half the rate moves {0.5 + off:.3f} less, not half")


def check_eight_bit(subject: Subject, network: str) -> Found:
    """With 8 bits asked for, the moments are kept in bytes, and training still works."""
    if not subject.eight_bit:
        given = "no 8-bit variant was given" if subject.merge is None else "keeps no moments that could be in 8 bits"
        return Found("not applicable", given)
    wide, narrow = made(subject, network, 32), made(subject, network, 8)
    step(wide)
    losses = [step(narrow) for _ in range(STEPS)]
    step(wide)
    packed, always = (_packed(each) for each in (narrow, wide))
    size, full = (live.state_bytes(each.optimizer, each.model) for each in (narrow, wide))
    if not packed or (size >= full and not always):
        return Found("no", f"asked for 8 bits, keeps {size:,} bytes of state; with 32 bits {full:,}")
    return _learned(losses, "always in 8 bits" if always else f"state {size / full:.2f} of 32-bit")


def check_bf16(subject: Subject, network: str) -> Found:
    """A network in bfloat16 trains, and every weight of it stays bfloat16."""
    trained = made(subject, network, dtype=torch.bfloat16)
    before = {name: value.dtype for name, value in trained.model.named_parameters()}
    losses = [step(trained) for _ in range(STEPS)]
    changed = [name for name, value in trained.model.named_parameters() if value.dtype != before[name]]
    if changed:
        return Found("no", f"{changed[0]} changed its dtype")
    return _learned(losses, "weights in bfloat16")


def check_per_layer(subject: Subject, network: str) -> Found:
    """Updating inside backward gives the ordinary step bit for bit, frees each gradient, and refuses accumulation."""
    plain, inside = (made(subject, network) for _ in range(2))
    per_layer = PerLayer(inside.optimizer)
    for _ in range(5):
        step(plain)
        inside.model(**make_batch(network)).loss.backward()
        if any(parameter.grad is not None for parameter in inside.model.parameters()):
            return Found("no", "a gradient is still there after backward")
        per_layer.finish()
    other = dict(inside.model.named_parameters())
    if not all(torch.equal(value, other[name]) for name, value in plain.model.named_parameters()):
        return Found("no", "differs from the ordinary step")
    try:
        step(inside, parts=2)
    except RuntimeError as error:
        if "accumulat" in str(error):
            return Found("yes", "bit-equal to the ordinary step; gradients freed; accumulation refused")
        raise
    return Found("no", "takes two backward passes in one step without a word")


def check_resume(subject: Subject, network: str) -> Found:
    """Stop, save, load with `weights_only=True` into fresh objects, go on: bit-equal to never having stopped."""
    widths = (32, 8) if subject.eight_bit else (32,)
    for bits in widths:
        straight = made(subject, network, bits)
        files = {}
        for index in range(6):
            if index in (1, 4):
                files[index] = io.BytesIO()
                state = {"model": straight.model.state_dict(), "optimizer": straight.optimizer.state_dict()}
                torch.save(state, files[index])
            step(straight)
        for stop, file in files.items():
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            resumed = made(subject, network, bits)
            resumed.model.load_state_dict(saved["model"])
            resumed.optimizer.load_state_dict(saved["optimizer"])
            for _ in range(stop, 6):
                step(resumed)
            other = dict(resumed.model.named_parameters())
            wrong = [name for name, value in straight.model.named_parameters() if not torch.equal(value, other[name])]
            if wrong:
                return Found("no", f"stopped after {stop} steps, {bits} bit: {len(wrong)} parameters end differently")
    return Found("yes", f"bit-equal, weights_only, {' and '.join(map(str, widths))} bit")


def check_merge(subject: Subject, network: str) -> Found:
    """Folding leaves the base network: same outputs, module tree and parameters, also through `from_pretrained`."""
    if subject.merge is None:
        return Found("not applicable", "an optimizer puts nothing into the model")
    base, trained = make_network(network).eval(), made(subject, network)
    for _ in range(4):
        step(trained)
    before = logits(trained.model, network)
    if float((before - logits(base, network)).abs().max()) < 1e-2:
        return Found("no", "four steps change no output")
    merged = subject.merge(trained.model)
    off = float((logits(merged, network) - before).abs().max())
    if off > 1e-4:
        return Found("no", f"outputs change by {off:.1e}")
    if _tree(merged) != _tree(base) or set(vars(merged)) != set(vars(base)):
        return Found("no", "module tree or parameters differ from the base network's")
    same = torch.equal(logits(_loaded_again(merged), network), logits(merged, network))
    return either(same, "same outputs and tree, loads again", "from_pretrained gives other outputs")


def check_tied(subject: Subject, network: str) -> Found:
    """A head that is the embedding stays it, is held once, and the network trains."""
    trained = made(subject, network)
    losses = [step(trained) for _ in range(STEPS)]
    held = [id(parameter) for group in trained.optimizer.param_groups for parameter in group["params"]]
    if len(held) != len(set(held)):
        return Found("no", "the optimizer holds a tied weight twice")
    model = trained.model if subject.merge is None else subject.merge(trained.model)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[operator]
    if head.weight is not embedding.weight:
        return Found("no", "head and embedding came apart")
    return _learned(losses, "stay one parameter")


def compile_check(backend: str) -> Find:
    """Return the check that a compiled model trains like the eager one; how many graphs it fell into is the reason."""

    def check(subject: Subject, network: str) -> Found:
        eager, compiled = (made(subject, network) for _ in range(2))
        start = weights(eager.model)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = compiled.model
        compiled.model = cast(nn.Module, torch.compile(model, backend=backend))
        for _ in range(2):
            step(eager)
            step(compiled)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
        torch._dynamo.reset()
        if graphs == 0:
            return Found("no", "nothing was compiled")
        gap = apart(eager.model, model, start)
        whole = "one graph" if graphs == 1 and not breaks else f"{graphs} graphs, {breaks} breaks"
        return either(gap < 1e-2, f"{whole}, {backend}", f"ends {gap:.1e} of the way from the eager model")

    return check


def checks(backend: str = "aot_eager") -> dict[str, Check]:
    """Return every check by name, in the order of columns."""
    return {
        "accumulation": Check(check_accumulation),
        "clipping": Check(check_clipping),
        "learning rate": Check(check_rate),
        "8-bit": Check(check_eight_bit),
        "bf16": Check(check_bf16),
        "per-layer": Check(check_per_layer),
        "compile": Check(compile_check(backend), ("llama-one",)),
        "resume": Check(check_resume),
        "merge": Check(check_merge),
        "tied weights": Check(check_tied, ("llama-tied",)),
    }


def run_check(check: Check, subject: Subject, networks: Sequence[str]) -> Found:
    """Return what the check finds on each network, the worst answer where they differ, named."""
    found = [(network, _guarded(check.find, subject, network)) for network in check.networks or networks]
    if len({each.answer for _, each in found}) == 1:
        return found[-1][1]
    order: tuple[Answer, ...] = ("no", "refused", "not applicable", "yes")
    network, worst = min(found, key=lambda item: order.index(item[1].answer))
    return worst._replace(reason=f"{network}: {worst.reason}")


def _guarded(find: Find, subject: Subject, network: str) -> Found:
    try:
        return find(subject, network)
    except Refused as error:
        return Found("refused", str(error))
    except Exception as error:  # noqa: BLE001  what a check breaks on is its answer; the others go on
        text = " ".join(str(error).split())
        return Found("no", f"{type(error).__name__}: {text[:160]}")


def _packed(trained: Trained) -> bool:
    return any(tensor.itemsize == 1 for _, tensor in live.held_tensors(trained.optimizer, trained.model))


def _learned(losses: Sequence[float], yes: str) -> Found:
    if losses[-1] < LEARNED * losses[0]:
        return Found("yes", f"{yes}; learns")
    return Found("no", f"the loss goes from {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps", slow=True)


def _loaded_again(model: nn.Module) -> nn.Module:
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # type: ignore[operator]
        loaded: nn.Module = type(model).from_pretrained(folder)  # type: ignore[attr-defined]
    return loaded.eval().to(DEVICE.get())


def _parts(batch: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    rows = {name: value.chunk(count) for name, value in batch.items()}
    return [{name: value[index] for name, value in rows.items()} for index in range(count)]


def _gradient_norm(trained: Trained) -> float:
    """Return the norm of the batch's gradient, without filling `.grad`."""
    chosen = [parameter for parameter in trained.model.parameters() if parameter.requires_grad]
    loss = trained.model(**make_batch(trained.network)).loss
    grads = torch.autograd.grad(loss, chosen, allow_unused=True)
    return float(nn.utils.get_total_norm([grad for grad in grads if grad is not None]))


def _tree(model: nn.Module) -> tuple[object, ...]:
    modules = [(name, type(module)) for name, module in model.named_modules()]
    return modules, [(n, p.shape, p.dtype) for n, p in model.named_parameters()], list(model.state_dict())
