"""Pure functions of each task: request to arrays, arrays to response, and the files that describe a model.

Queues and engines belong in `batching` and `backends`.
"""
