"""A load generator in a process of its own: requests on a clock or in loops, answers read and compared.

It knows bytes and times. What a request asks belongs in `scenarios`, what is drawn from a recording in `report`.
"""
