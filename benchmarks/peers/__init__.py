"""Side by side with Infinity: the models of both, equal answers first, turns, and the goals.

What one server needs to be measured belongs in `runs`.
"""
