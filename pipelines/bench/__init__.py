"""Measure a running server over HTTP: scenarios, a load generator in its own process, figures and a report."""
