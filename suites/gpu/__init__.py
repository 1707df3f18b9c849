"""The device check: what a CUDA device does with this code, in ten minutes, without the network."""
