"""What is looked at before training: validation, estimates, rows, the machine, templates."""
