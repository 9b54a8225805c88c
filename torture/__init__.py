"""Real faults in real runs: kills, full disks, damaged files, garbage, starters, untrusted files.

Each module holds one kind of fault as `trials(count, seed, folder) -> outcome`, a mapping of
counts and of sentences about what failed. `python -m torture` runs the long forms and writes what
they found; the short forms are tests, in `tests/torture/`.
"""
