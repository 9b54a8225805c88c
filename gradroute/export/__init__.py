"""Shipping a run without its bad adapter, and proving that it is not in the files."""
