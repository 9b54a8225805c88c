"""Measuring: completions and losses under ablation modes, and the geometry of updates."""
