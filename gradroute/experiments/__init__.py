"""Several runs that belong together: controls, runs side by side, the demo."""
