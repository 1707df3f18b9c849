"""Faults that change numbers and no byte."""

from __future__ import annotations

from suites.gate.faults.fault import Edit, Fault

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
                "baselines/shared/adamw.py",
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
        (Edit("baselines/shared/projected.py", "        weight_decay=adam.weight_decay,\n", ""),),
        cells=("/galore [decay", "/gradnormlorp [decay"),
        only=("glue/rte/galore [", "glue/rte/gradnormlorp [", "glue/rte/full ["),
        expected="loss",
    ),
    Fault(
        "learning-rate-halved",
        "The loop trains at half the learning rate and writes the whole one into the record.",
        (
            Edit(
                "suites/run/loop.py",
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
                "suites/run/loop.py",
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
        (Edit("suites/run/loop.py", "[job.weight(batch) for", "[job.tokens(batch) for"),),
        cells=("/full [decay",),
        only=("glue/rte/full [", "glue/wnli/full"),
        expected="loss",
    ),
    Fault(
        "mean-of-means",
        "Micro-batches count alike, however much they hold.",
        (Edit("suites/run/loop.py", "share = weight / sum(weights)", "share = 1 / len(weights)"),),
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
                "suites/run/per_layer.py",
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
