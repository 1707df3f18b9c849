"""One run from plan to record, and many of them: build, loop, checkpoints, processes."""
