"""The command line: arguments in, words for a terminal out, one module per group of commands.

Nothing is decided here; a command calls one function of another package.
"""
