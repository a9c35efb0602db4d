"""Figures of a run, their bounds, and the page, plots and tables that show them."""
