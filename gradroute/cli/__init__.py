"""The command line: `main` with errors and exit codes, `parser`, and a module per group of verbs.

A module of verbs has `add(verbs)`, which adds its parsers; `arguments` holds what they share. Heavy
imports live inside the functions that need them, so that `--help` answers at once.
"""
