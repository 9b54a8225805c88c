"""A run's folder: paths, lock, starting conditions, results, provenance. No torch."""
