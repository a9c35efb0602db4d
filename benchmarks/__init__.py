"""Benchmarks: this server, its peers and the engine's own limit, side by side on one machine (docs/benchmarks.md)."""
