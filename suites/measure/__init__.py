"""The ruler: bytes of live tensors, tracked and predicted peaks, the ledger, and where a run ran."""
