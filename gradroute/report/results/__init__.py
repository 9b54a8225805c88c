"""Run folders read, and what is counted from their results."""
