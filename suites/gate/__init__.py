"""The gate's own runs: which plans it runs, and its replicates."""
