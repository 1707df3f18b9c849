"""Faults that change bytes and numbers, and those that the gate cannot see: its limits."""

from __future__ import annotations

from suites.gate.faults.fault import Edit, Fault

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
        (Edit("baselines/shared/projected.py", "        state_bits=adam.state_bits,\n", ""),),
        cells=("/galore [8-bit",),
        only=("c4/c4/galore [8-bit", "c4/c4/lora [8-bit"),
        expected="exact",
    ),
    Fault(
        "target-missed",
        "The first half of an encoder's MLP is no target any more.",
        (
            Edit(
                "baselines/shared/targets.py",
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
                "suites/run/loop.py",
                "return (step + 1) / (plan.warmup_steps + 1)",
                "return (step + 1) / plan.warmup_steps",
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
                "suites/run/loop.py",
                "get_total_norm([p.grad for p in parameters if p.grad is not None])",
                "get_total_norm([p.grad.clone() for p in parameters if p.grad is not None])",
            ),
        ),
        cells=("/full", "/galore"),
        only=("glue/rte/full [", "glue/rte/galore ["),
        expected="none",
    ),
)
