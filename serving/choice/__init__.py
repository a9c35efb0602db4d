"""Which profile runs here, and why not each of the others: hardware, GPU names, selection, listing.

Fetching the files of a choice belongs in `cache`, loading them in `start`.
"""
