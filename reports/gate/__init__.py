"""The gate's verdict as text, and its commands."""
