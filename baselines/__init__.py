"""The methods under comparison, one file each, behind one contract (`method.py`). Imports gnlorp, never suites."""
