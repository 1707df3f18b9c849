"""The HTML page: one file that holds everything."""
