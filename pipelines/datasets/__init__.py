"""Texts, pairs and pictures that calibrate, prove and judge, held apart from each other.

How a figure is computed from them belongs in `measure`.
"""
