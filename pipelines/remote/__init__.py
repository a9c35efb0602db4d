"""Clients of what is not on this machine: a bucket, a registry, and the remedies for what they refuse.

What is sent belongs in `publish`, what is checked in `inspect`.
"""
