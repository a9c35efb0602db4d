"""Listening and framing: sockets, TLS, signals, and the limits of one connection.

What a request means belongs in `api`.
"""
