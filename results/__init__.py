"""Records: their schema, their store, and the evidence kept under version control. Never imports torch."""
