"""Statistics over seeds and tasks: pure functions of numbers."""
