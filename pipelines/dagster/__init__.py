"""The factory as Dagster assets, checks, sensors and schedules: the only package that imports dagster.

An asset is a signature, one call into `plan` or `build`, and the metadata that a person wants to see.
"""
