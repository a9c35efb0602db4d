"""Stage outputs by digest, a record per cache key, and claims on work.

What a crash leaves behind is garbage, never a wrong answer.
What a step is and whether it is stale belongs in `plan`.
"""
