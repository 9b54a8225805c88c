"""Probes of a finished run: adapter geometry, recovery and relearning."""
