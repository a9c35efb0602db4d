"""`python -m pipelines.cli`: the same as `enginery`."""

from pipelines.cli.main import main

main()
