"""What is told of a running server: metrics, logs and traces.

Nothing here changes what the server does.
"""
