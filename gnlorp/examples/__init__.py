"""Programs to read and run: each trains a tiny network on generated data, offline, in seconds."""
