"""Read a release back: resolve a reference, verify it, compare two, explain what a server would choose from it.

Nothing here writes.
"""
