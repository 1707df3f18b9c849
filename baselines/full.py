"""Full fine-tuning: every weight is trained with AdamW; the yardstick of every comparison.

    W <- (1 - lr * weight_decay) * W - lr * m / (sqrt(v) + eps)

Bytes of state for an O x I weight: 8 * O * I with 32-bit moments (Kingma & Ba, arXiv 1412.6980; decoupled decay:
Loshchilov & Hutter, arXiv 1711.05101). Stated choice: the bias, norm and embedding parameters are trained too.
"""

from __future__ import annotations

from baselines.method import Method, MethodConfig, Part, Rates, train_everything
from baselines.shared.adamw import adamw_over_trained

METHOD = Method(
    name="full",
    title="Full fine-tuning",
    arxiv=None,
    config_type=MethodConfig,
    configure=lambda rank: MethodConfig(),
    attach=train_everything,
    optimizer=adamw_over_trained,
    merge=lambda model: model,
    layer_parts=lambda shape, config: (Part("weight", shape, trained=True, added=False),),
    saves_state=False,
    order=0,
    default=True,
    slot=0,
    yardstick=True,
    rates={
        "fine-tuning": Rates.around(3e-5, "release's GLUE script"),
        "pre-training": Rates.around(1e-3, "GaLore's protocol picks from 1e-4 to 1e-2 (arXiv 2403.03507)"),
    },
)
