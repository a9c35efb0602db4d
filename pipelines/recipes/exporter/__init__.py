"""Optimum and PyTorch as exporters, for models that are larger than memory.

What is exported belongs in the recipes' own modules.
"""
