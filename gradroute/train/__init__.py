"""Training: one optimizer step (`step.py`) and the loop around it (`trainer.py`)."""
