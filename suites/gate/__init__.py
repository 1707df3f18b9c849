"""The gate's own runs: which plans it runs, its replicates, and the trial with seeded faults."""
