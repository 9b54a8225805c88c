"""A run's folder: paths, lock, what it was begun with, results, provenance. No torch."""
