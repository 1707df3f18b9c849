"""What all tests share: one thread, so that results do not depend on the machine's load or number of cores."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
