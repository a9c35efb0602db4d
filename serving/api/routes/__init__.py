"""Routes that the engine answers, task by task: a body to the task's items, rows to the answer that a client knows.

A task's own arithmetic belongs in `tasks`; what every request goes through, whatever its route, in `api.app`.
"""
