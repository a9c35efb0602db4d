"""The environment: every variable, what it means, and whether it works, is ignored or is refused.

Defaults that no variable changes belong where they are used.
"""
