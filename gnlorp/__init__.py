"""GradNormLoRP: weight-normalised low-rank layers, trained by AdamW on projected gradients (arXiv 2412.19616)."""

from gnlorp.dense import NormLinear
from gnlorp.layer import NormLowRankLinear, attach, merge
from gnlorp.optimizer import Diverged, GradNormLoRPAdamW, param_groups

__all__ = ["Diverged", "GradNormLoRPAdamW", "NormLinear", "NormLowRankLinear", "attach", "merge", "param_groups"]
