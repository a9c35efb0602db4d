"""Metrics against thresholds, to a verdict with a reason for everything. Pure: no files, no engines, no clock.

Measuring belongs in `measure`; the form of verdict.json belongs here.
"""
