"""Faults that change bytes and no number."""

from __future__ import annotations

from suites.gate.faults.fault import Edit, Fault

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
        (Edit("suites/run/loop.py", "zero_grad(set_to_none=True)", "zero_grad(set_to_none=False)"),),
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
                "suites/run/execute.py",
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
                "suites/run/loop.py",
                "    if not plan.per_layer:\n",
                "    if not plan.per_layer or plan.clip_norm is None:\n",
            ),
        ),
        cells=("[per-layer",),
        only=("c4/c4/galore [per-layer", "c4/c4/lora [per-layer"),
        expected="peak",
    ),
)
