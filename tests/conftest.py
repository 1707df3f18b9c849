"""What all tests share: one thread, so that results do not depend on load or cores, and a Ctrl-C that arrives."""

from __future__ import annotations

import signal

import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A script's `pytest &` ignores it, and so would every command that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
