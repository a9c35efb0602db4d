"""The servers that are measured: their processes, their addresses, and two that cost nothing.

How they are loaded belongs in `load`, what Infinity needs in `peers`.
"""
