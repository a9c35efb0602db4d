"""What must run and why: rows to steps, steps to cache keys, keys to what is there, stale or elsewhere.

Running belongs in `build`, the screen in `cli`. Nothing here executes a stage or writes an output.
"""
