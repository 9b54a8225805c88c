"""Checks before training: validation, estimates, rows, the machine, templates."""
