"""Checks before training: validation, rows, the machine, templates."""
