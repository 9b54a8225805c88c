"""Run folders read, and the numbers computed from their results."""
