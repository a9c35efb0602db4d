"""The page that a person looks at: what it shows as values, how they are collected, plots and the template.

Figures are measured in `measure` and judged in `gate`; nothing is computed here but what is drawn.
"""
