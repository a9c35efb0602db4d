"""What the factory knows of each task, one row each: `table.TASKS`. Adding a task begins here.

A row holds the task's gate rules, thresholds and labels, and names the modules of its recipe and its measure. How a
model is exported belongs in `recipes`, how an engine is measured in `measure`.
"""
