"""Engines that passed, to a root file system, to an OCI image whose digest depends on its content alone.

What is published of it belongs in `release` and `publish`.
"""
