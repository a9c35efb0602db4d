"""One-shot tasks: items of many requests are queued, cut into batches and run on an engine, and each gets its own rows.

What an item is belongs in `tasks`, which is not imported here; how an engine runs a batch in `backends`.
"""
