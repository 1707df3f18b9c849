"""Seeded faults for the mutation trial: changes as a careless commit makes them, each silent, and changes of nothing.

Every fault leaves a tree that imports and trains. Those of `MEMORY_ONLY` change bytes and of numbers at most the last
bits, those of `NUMBERS_ONLY` numbers and no byte, and those of `UNSEEN` nothing that the gate's runs could show: they
are its limits.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """One text of a file replaced by another.

    Attributes:
        file: path below the root of the tree.
        old: stands in the file exactly once.
    """

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        what: what is wrong, in a sentence.
        cells: parts of the cells (`results.gate.quantities.cell_of`) in which it is wrong.
        only: which of the gate's runs show it, as `suites.gate.runs.gate_plans` takes them; a run beyond `cells`
            belongs to a method or a setting that the fault does not touch.
        expected: the first kind, in the order of `results.gate.quantities.KINDS`, that has a finding; or "none".
    """

    name: str
    what: str
    edits: tuple[Edit, ...]
    cells: tuple[str, ...]
    only: tuple[str, ...]
    expected: str


MEMORY_ONLY: tuple[Fault, ...] = (
    Fault(
        "backward-copies-the-weight",
        "The layer's backward makes a copy of the frozen weight and holds it until it ends.",
        (
            Edit(
                "gnlorp/weight_norm.py",
                "weight, out, inner = weight_OI.to(grad.dtype), out_OR.to(grad.dtype), in_RI.to(grad.dtype)",
                "weight, out, inner = weight_OI.to(grad.dtype, copy=True), out_OR.to(grad.dtype), in_RI.to(grad.dtype)",
            ),
        ),
        cells=("/gradnormlorp",),
        only=("glue/rte/gradnormlorp [", "glue/rte/lora ["),
        expected="peak",
    ),
    Fault(
        "output-kept-twice",
        "The layer saves a copy of its output for the backward pass, beside the output that the model keeps anyway.",
        (
            Edit(
                "gnlorp/weight_norm.py",
                "ctx.save_for_backward(\n            source, hidden_TR, y, weight_OI,",
                "ctx.save_for_backward(\n            source, hidden_TR, y.clone(), weight_OI,",
            ),
        ),
        cells=("/gradnormlorp",),
        only=("glue/rte/gradnormlorp [", "glue/rte/dora ["),
        expected="peak",
    ),
    Fault(
        "update-in-full-size",
        "A projected update forms the new weight beside the old one and copies it over.",
        (
            Edit(
                "gnlorp/projection.py",
                "weight_MN.addmm_(first.to(dtype), second.to(dtype), beta=keep, alpha=scale)",
                "weight_MN.copy_(torch.addmm(weight_MN, first.to(dtype), second.to(dtype), beta=keep, alpha=scale))",
            ),
        ),
        cells=("/galore",),
        only=("glue/rte/galore [", "glue/rte/full ["),
        expected="peak",
    ),
    Fault(
        "basis-holds-all-vectors",
        "A basis is a view into the square matrix of all singular vectors, which stays alive in the state.",
        (
            Edit(
                "gnlorp/projection.py",
                "found[index] = each[:, -projection_rank:].flip(1)",
                "found[index] = each.flip(1)[:, :projection_rank]",
            ),
            Edit(
                "gnlorp/projection.py",
                "return (basis * torch.where(reference < 0, -1.0, 1.0).to(basis.dtype)).contiguous()",
                "return basis.mul_(torch.where(reference < 0, -1.0, 1.0).to(basis.dtype))",
            ),
        ),
        cells=("/galore", "/gradnormlorp"),
        only=("glue/rte/galore [", "glue/rte/gradnormlorp ["),
        expected="exact",
    ),
    Fault(
        "start-kept-in-the-state",
        "The plain groups of the projecting optimizer keep a copy of each parameter's first value in the state.",
        (
            Edit(
                "gnlorp/update.py",
                "state.update(step=0, **new_moments(weight.shape, weight.dtype,",
                "state.update(step=0, start=weight.detach().clone(), **new_moments(weight.shape, weight.dtype,",
            ),
        ),
        cells=("/gradnormlorp",),
        only=("glue/rte/gradnormlorp [", "glue/rte/lora ["),
        expected="exact",
    ),
    Fault(
        "gradients-stay-as-zeros",
        "After a step gradients are set to zero instead of freed, and stand beside the next step's activations.",
        (Edit("suites/loop.py", "zero_grad(set_to_none=True)", "zero_grad(set_to_none=False)"),),
        cells=("/lora", "/galore"),
        # A run that accumulates holds all gradients at its peak anyway.
        only=("glue/wnli/lora", "glue/wnli/galore"),
        expected="peak",
    ),
    Fault(
        "checkpointing-off",
        "Activation checkpointing is left off on a processor, whatever the plan says.",
        (
            Edit(
                "suites/run.py",
                "    if plan.training.checkpointing:\n",
                '    if plan.training.checkpointing and device.type == "cuda":\n',
            ),
        ),
        cells=("[8-bit",),
        only=("c4/c4/lora [8-bit",),
        expected="peak",
    ),
    Fault(
        "per-layer-off",
        "Runs without clipping, which per-layer updates demand, fall back to the ordinary step with all gradients.",
        (
            Edit(
                "suites/loop.py",
                "    if not plan.per_layer:\n",
                "    if not plan.per_layer or plan.clip_norm is None:\n",
            ),
        ),
        cells=("[per-layer",),
        only=("c4/c4/galore [per-layer", "c4/c4/lora [per-layer"),
        expected="peak",
    ),
)

NUMBERS_ONLY: tuple[Fault, ...] = (
    Fault(
        "basis-never-renewed",
        "A refresh fits new bases and counts, but the first ones stay in use.",
        (
            Edit(
                "gnlorp/update.py",
                "            if basis is not None:\n                state[name] = basis\n",
                "            if basis is not None:\n                state.setdefault(name, basis)\n",
            ),
        ),
        cells=("/galore",),
        only=("glue/rte/galore [", "glue/wnli/galore"),
        expected="loss",
    ),
    Fault(
        "refresh-a-step-late",
        "Bases are fitted anew one step later than the gap says; the number of refreshes is the same.",
        (
            Edit(
                "gnlorp/update.py",
                'states[i].get("step", 0) % group["refresh_gap"] == 0]',
                '(not states[i] or 1 < states[i]["step"] and (states[i]["step"] - 1) % group["refresh_gap"] == 0)]',
            ),
        ),
        cells=("/galore", "/gradnormlorp"),
        only=("glue/rte/galore [", "glue/rte/gradnormlorp ["),
        expected="loss",
    ),
    Fault(
        "moments-rotated-backwards",
        "Rotating the moments at a refresh takes the transpose: from the new basis into the old one.",
        (Edit("gnlorp/moments.py", "turn = after.T @ before", "turn = before.T @ after"),),
        cells=("/galore [decay", "/gradnormlorp [decay"),
        only=("glue/rte/galore [", "glue/rte/gradnormlorp [", "glue/wnli/galore"),
        expected="loss",
    ),
    Fault(
        "bias-correction-left-out",
        "Adam's moments are used without bias correction.",
        (Edit("gnlorp/moments.py", "torch.full((), float(step),", "torch.full((), 1e9,"),),
        cells=("/galore",),
        only=("glue/rte/galore [", "glue/rte/lora ["),
        expected="loss",
    ),
    Fault(
        "scale-applied-twice",
        "The scale of a projected update is multiplied in twice; at 1 nobody notices.",
        (
            Edit(
                "gnlorp/update.py",
                'scale = float(group["lr"]) * group["scale"]',
                'scale = float(group["lr"]) * group["scale"] * group["scale"]',
            ),
        ),
        cells=("/galore",),
        only=("glue/rte/galore [", "glue/rte/gradnormlorp ["),
        expected="loss",
    ),
    Fault(
        "alpha-over-root-rank",
        "The product of the factors is scaled by alpha over the root of the rank instead of alpha over the rank.",
        (
            Edit(
                "gnlorp/layer.py",
                "self.scaling = self.alpha / rank",
                "self.scaling = self.alpha / math.sqrt(rank)",
            ),
        ),
        cells=("/gradnormlorp",),
        only=("glue/rte/gradnormlorp [", "glue/rte/dora ["),
        expected="loss",
    ),
    Fault(
        "magnitude-never-trained",
        "The magnitude's gradient is zero everywhere: it is held, counted, and never moves but by decay.",
        (
            Edit(
                "gnlorp/weight_norm.py",
                "torch.where(magnitude_O != 0, energy_O / magnitude_O, 0.0)",
                "torch.where(magnitude_O == 0, energy_O / magnitude_O, 0.0)",
            ),
        ),
        cells=("/gradnormlorp",),
        only=("glue/rte/gradnormlorp [", "glue/rte/dora ["),
        expected="loss",
    ),
    Fault(
        "decay-in-the-gradient",
        "Weight decay is added to the gradient (Adam) instead of decoupled from it (AdamW).",
        (
            Edit(
                "baselines/adamw.py",
                "torch.optim.AdamW(chosen, fused=True, **options)",
                "torch.optim.Adam(chosen, fused=True, **options)",
            ),
        ),
        cells=("/lora [decay",),
        only=("glue/rte/lora [", "glue/wnli/lora"),
        expected="loss",
    ),
    Fault(
        "decay-dropped",
        "The projecting optimizer is not told the weight decay.",
        (Edit("baselines/projected.py", "        weight_decay=adam.weight_decay,\n", ""),),
        cells=("/galore [decay", "/gradnormlorp [decay"),
        only=("glue/rte/galore [", "glue/rte/gradnormlorp [", "glue/rte/full ["),
        expected="loss",
    ),
    Fault(
        "learning-rate-halved",
        "The loop trains at half the learning rate and writes the whole one into the record.",
        (
            Edit(
                "suites/loop.py",
                'each["lr"] = each["initial_lr"] * factor',
                'each["lr"] = each["initial_lr"] * factor / 2',
            ),
        ),
        cells=("/lora", "/galore"),
        only=("glue/rte/lora [", "glue/rte/galore ["),
        expected="loss",
    ),
    Fault(
        "clipping-dropped",
        "The parameters to clip are a generator that has been walked before: nothing is clipped.",
        (
            Edit(
                "suites/loop.py",
                'parameters = [parameter for each in optimizer.param_groups for parameter in each["params"]]',
                'parameters = (parameter for each in optimizer.param_groups for parameter in each["params"])',
            ),
        ),
        cells=("glue/",),
        only=("glue/rte/full [", "glue/rte/galore ["),
        expected="loss",
    ),
    Fault(
        "micro-batches-by-tokens",
        "Accumulated micro-batches of GLUE count by their tokens instead of their rows.",
        (Edit("suites/loop.py", "[job.weight(batch) for", "[job.tokens(batch) for"),),
        cells=("/full [decay",),
        only=("glue/rte/full [", "glue/wnli/full"),
        expected="loss",
    ),
    Fault(
        "mean-of-means",
        "Micro-batches count alike, however much they hold.",
        (Edit("suites/loop.py", "share = weight / sum(weights)", "share = 1 / len(weights)"),),
        cells=("c4/c4/full [8-bit",),
        only=("c4/c4/full [8-bit", "glue/rte/full ["),
        expected="loss",
    ),
    Fault(
        "order-seed-ignored",
        "Every seed sees the rows in the order of seed 0.",
        (
            Edit(
                "suites/glue/__init__.py",
                'order = derived_seed(plan.seed, "order")',
                'order = derived_seed(0, "order")',
            ),
        ),
        cells=("/full",),
        only=("cola-full-s1", "cola-full-s0"),
        expected="loss",
    ),
    Fault(
        "labels-of-the-row-before",
        "Every 25th row is trained on the label of the row before it; evaluation reads the right ones.",
        (
            Edit(
                "suites/glue/encode.py",
                "self.labels[index].item()",
                "self.labels[index - int(index % 25 == 0)].item()",
            ),
        ),
        cells=("/full", "/lora"),
        only=("glue/rte/full [", "glue/rte/lora ["),
        expected="loss",
    ),
    Fault(
        "gradient-norm-of-one-layer",
        "With per-layer updates the largest single norm is reported as the norm of all gradients.",
        (
            Edit(
                "suites/per_layer.py",
                "self._norm = math.hypot(self._norm, norm)",
                "self._norm = max(self._norm, norm)",
            ),
        ),
        cells=("/lora [per-layer",),
        only=("c4/c4/lora [per-layer", "c4/c4/galore [per-layer"),
        expected="gradient",
    ),
    Fault(
        "evaluation-with-dropout",
        "GLUE is scored with the model in training mode.",
        (Edit("suites/glue/__init__.py", "    model.eval()\n", ""),),
        cells=("/full",),
        only=("glue/stsb/full",),
        expected="score",
    ),
    Fault(
        "evaluation-skips-the-last-batch",
        "Perplexity leaves out the last, smaller batch and still divides by all tokens.",
        (
            Edit(
                "suites/c4/evaluate.py",
                "for first in range(0, len(what.sequences), size):",
                "for first in range(0, len(what.sequences) - size + 1, size):",
            ),
        ),
        cells=("c4/c4/",),
        only=("c4/c4/lora [8-bit",),
        expected="score",
    ),
)

BOTH: tuple[Fault, ...] = (
    Fault(
        "square-weights-on-the-other-side",
        "Square weights are projected on their rows instead of their columns.",
        (Edit("gnlorp/projection.py", "    tall = shape[0] >= shape[1]\n", "    tall = shape[0] > shape[1]\n"),),
        cells=("glue/wnli/galore",),
        only=("glue/wnli/galore", "glue/wnli/gradnormlorp", "glue/rte/galore ["),
        expected="exact",
    ),
    Fault(
        "moments-survive-a-merge",
        "What restarted factors are to forget goes from a copy of the state: moments, bases and counters stay.",
        (Edit("gnlorp/optimizer.py", "self.state.pop(weight, None)", "dict(self.state).pop(weight, None)"),),
        cells=("/gradnormlorp [per-layer",),
        only=("c4/c4/gradnormlorp [per-layer", "c4/c4/galore [per-layer"),
        expected="exact",
    ),
    Fault(
        "magnitude-in-double-precision",
        "Norms are summed in float64, so that magnitudes and their moments are kept in it too.",
        (
            Edit(
                "gnlorp/weight_norm.py",
                "return torch.promote_types(dtype, torch.float32)",
                "return torch.promote_types(dtype, torch.float64)",
            ),
        ),
        cells=("/gradnormlorp",),
        only=("glue/rte/gradnormlorp [", "glue/rte/dora ["),
        expected="exact",
    ),
    Fault(
        "norm-gradient-detached",
        "The layer takes the row norm as a constant where it is told to differentiate through it.",
        (Edit("gnlorp/layer.py", 'self.norm_gradient == "full",', 'self.norm_gradient == "detached",'),),
        cells=("/gradnormlorp",),
        only=("glue/rte/gradnormlorp [", "glue/rte/dora ["),
        expected="peak",
    ),
    Fault(
        "dropout-not-handed-on",
        "Attaching the layers forgets the dropout of the low-rank path.",
        (
            Edit(
                "gnlorp/layer.py",
                "NormLowRankLinear(base, rank, alpha, dropout, norm_gradient)",
                "NormLowRankLinear(base, rank, alpha, norm_gradient=norm_gradient)",
            ),
        ),
        cells=("/gradnormlorp [decay",),
        only=("glue/rte/gradnormlorp [", "glue/wnli/gradnormlorp"),
        expected="peak",
    ),
    Fault(
        "eight-bit-off",
        "The projecting optimizer is not told the width of its moments and keeps them in 32 bits.",
        (Edit("baselines/projected.py", "        state_bits=adam.state_bits,\n", ""),),
        cells=("/galore [8-bit",),
        only=("c4/c4/galore [8-bit", "c4/c4/lora [8-bit"),
        expected="exact",
    ),
    Fault(
        "target-missed",
        "The first half of an encoder's MLP is no target any more.",
        (
            Edit(
                "baselines/targets.py",
                'MLP = ("intermediate.dense", "output.dense",',
                'MLP = ("output.dense",',
            ),
        ),
        cells=("/lora", "/galore"),
        only=("glue/rte/lora [", "glue/rte/galore ["),
        expected="exact",
    ),
    Fault(
        "warm-up-off-by-one",
        "Warm-up reaches the whole learning rate in its own last step.",
        (
            Edit(
                "suites/loop.py", "return (step + 1) / (plan.warmup_steps + 1)", "return (step + 1) / plan.warmup_steps"
            ),
        ),
        cells=("/full", "/lora"),
        only=("glue/rte/full [", "glue/rte/lora ["),
        expected="exact",
    ),
)

UNSEEN: tuple[Fault, ...] = (
    Fault(
        "norms-summed-in-bf16",
        "Row norms are summed in the weight's own precision; no run of the gate has weights in bf16.",
        (
            Edit(
                "gnlorp/weight_norm.py",
                "return torch.promote_types(dtype, torch.float32)",
                "return dtype",
            ),
        ),
        cells=("/gradnormlorp",),
        only=("glue/rte/gradnormlorp [", "c4/c4/gradnormlorp [per-layer"),
        expected="none",
    ),
    Fault(
        "norm-copies-all-gradients",
        "The gradient norm is taken of copies of all gradients; in so small a model the activations' peak hides them.",
        (
            Edit(
                "suites/loop.py",
                "get_total_norm([p.grad for p in parameters if p.grad is not None])",
                "get_total_norm([p.grad.clone() for p in parameters if p.grad is not None])",
            ),
        ),
        cells=("/full", "/galore"),
        only=("glue/rte/full [", "glue/rte/galore ["),
        expected="none",
    ),
)

FAULTS: tuple[Fault, ...] = MEMORY_ONLY + NUMBERS_ONLY + BOTH + UNSEEN

NO_OPS: tuple[Fault, ...] = (
    Fault(
        "local-name",
        "A local variable has another name.",
        (
            Edit(
                "gnlorp/update.py",
                '        size = math.prod(projected_shape(weights[index].shape, group["projection_rank"], '
                'group["side"]))\n'
                "        if chunk and values + size > CHUNK_VALUES:\n"
                "            yield chunk\n"
                "            chunk, values = [], 0\n"
                "        chunk.append(index)\n"
                "        values += size\n",
                '        length = math.prod(projected_shape(weights[index].shape, group["projection_rank"], '
                'group["side"]))\n'
                "        if chunk and values + length > CHUNK_VALUES:\n"
                "            yield chunk\n"
                "            chunk, values = [], 0\n"
                "        chunk.append(index)\n"
                "        values += length\n",
            ),
        ),
        cells=(),
        only=("glue/rte/galore [", "glue/rte/gradnormlorp ["),
        expected="none",
    ),
    Fault(
        "order-of-two-statements",
        "Two statements that do not touch each other stand the other way round.",
        (
            Edit(
                "gnlorp/weight_norm.py",
                "            hidden_grad_TR.mul_(scaling)\n            out_grad.mul_(scaling)\n",
                "            out_grad.mul_(scaling)\n            hidden_grad_TR.mul_(scaling)\n",
            ),
        ),
        cells=(),
        only=("glue/rte/gradnormlorp [", "c4/c4/gradnormlorp [per-layer"),
        expected="none",
    ),
    Fault(
        "comment-added",
        "A comment says what a line does.",
        (
            Edit(
                "suites/loop.py",
                "        share = weight / sum(weights)\n",
                "        # What this micro-batch counts in its step.\n        share = weight / sum(weights)\n",
            ),
        ),
        cells=(),
        only=("glue/rte/full [", "glue/rte/lora ["),
        expected="none",
    ),
)
