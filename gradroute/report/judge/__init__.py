"""Verdicts and claims, computed from results."""
