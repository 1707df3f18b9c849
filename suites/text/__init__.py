"""What suites of classified text share: their rows, batches of tokens, and one job made of them."""
