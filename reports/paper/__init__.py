"""The papers' tables cell by cell: published, ours, verdict."""
