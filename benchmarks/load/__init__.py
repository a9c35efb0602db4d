"""A load generator in a process of its own: requests on a clock or in loops, answers read and compared.

What is asked belongs in `scenarios`, what is drawn from it in `report`.
"""
