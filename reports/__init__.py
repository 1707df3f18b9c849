"""Frames, statistics, tables and figures made from records alone: reads `results`, never imports torch."""
