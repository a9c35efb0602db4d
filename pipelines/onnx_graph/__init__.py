"""ONNX graphs that may be larger than memory: external data, streaming, the precision that a graph really holds.

What a task puts into a graph belongs in `recipes`, what a precision changes in `quantize`.
"""
