"""How a model becomes ONNX, golden outputs and calibration items: what differs per task, and what its recipes share.

A row of `tasks` names its recipe. How engines are compared with golden outputs belongs in `measure`.
"""
