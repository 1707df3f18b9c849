"""Imports that every run needs, loaded once into the fork server; importing this has no other effect.

All code of the repository that a run can need is among them: what a worker loaded later would be that of a file that
may have changed since the command was given.
"""

import importlib
import pkgutil

import datasets  # noqa: F401
import peft  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

import baselines
import gnlorp.sharded  # noqa: F401
import suites.generated.tasks
import suites.offline
import suites.registry
import suites.run.execute  # noqa: F401

suites.registry.all_suites()
# Not the registry's list of methods: it loads those of other packages too, which may touch a device.
for module in pkgutil.iter_modules(baselines.__path__):
    importlib.import_module(f"baselines.{module.name}")
