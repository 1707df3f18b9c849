"""The bench: speed and memory of the layer, the basis refresh, the optimizer step and a whole training step."""
