"""The memory ledger and the lab: what a method costs, by formula, by count and at the peak, with or without weights."""
