"""Grids of runs: cells of a file, trained here, on SLURM or on Ray, each killed and resumed."""
