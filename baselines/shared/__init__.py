"""What several methods share: the inner AdamW, peft's adapters, projected AdamW, and which layers are targets."""
