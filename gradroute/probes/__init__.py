"""Looks at a finished run: adapter geometry, recovery and relearning."""
