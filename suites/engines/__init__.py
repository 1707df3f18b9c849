"""Runs on other machines: engines that start the suite's own launcher there, one run each."""
