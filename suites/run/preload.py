"""Imports that every run needs, loaded once into the fork server; importing this has no other effect."""

import datasets  # noqa: F401
import peft  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

import suites.registry

suites.registry.all_suites()
