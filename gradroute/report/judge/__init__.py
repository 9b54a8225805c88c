"""Verdicts and claims: what the results show, and what they do not."""
