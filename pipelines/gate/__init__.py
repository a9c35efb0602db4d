"""Metrics against thresholds, to a verdict with a reason for everything. Pure: no files, no engines, no clock.

Measuring belongs in `measure`, a task's own rules and thresholds in `tasks`; the form of verdict.json belongs here.
"""
