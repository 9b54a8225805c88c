"""The verbs of the command line, a module per group: what each takes, and the one call that it is.

Every module has `add(verbs)`, which adds its parsers; `arguments` holds what they share. Heavy
imports live inside the functions that need them, so that `--help` answers at once.
"""
