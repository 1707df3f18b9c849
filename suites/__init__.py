"""What is run and how it is measured: suites, plan, loop, measurement, launch. `python -m suites --help`."""

import logging

# Warns at every import on a processor that it lacks a 4-bit kernel, which nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
