"""The engine alone: what no server that runs it can pass."""
