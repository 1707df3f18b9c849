"""Records as reports read them: gathered, selected, as typed frames."""
