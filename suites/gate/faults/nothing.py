"""Changes of the code that change nothing: the gate must stay quiet."""

from __future__ import annotations

from suites.gate.faults.fault import Edit, Fault

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
                "suites/run/loop.py",
                "        share = weight / sum(weights)\n",
                "        # What this micro-batch counts in its step.\n        share = weight / sum(weights)\n",
            ),
        ),
        cells=(),
        only=("glue/rte/full [", "glue/rte/lora ["),
        expected="none",
    ),
)
