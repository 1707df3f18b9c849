"""Figures, and how a method looks in them."""
