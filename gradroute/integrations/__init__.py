"""Routing inside the trainers of transformers and TRL."""
