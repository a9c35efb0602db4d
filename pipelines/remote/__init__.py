"""Clients of what is not on this machine: a bucket, a registry, and the remedies for what they refuse.

What is sent belongs in `publish`, what is checked in `inspect`.
"""

from collections.abc import Callable

Log = Callable[[str], None]  # tells a person what is sent or read
