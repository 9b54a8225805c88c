"""Routing: which adapter learns from which example, and which adapters take part in evaluation.

`policy` holds the tables (no torch), `ops` the arithmetic, `adapters` the model around them.
"""
