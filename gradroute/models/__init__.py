"""The frozen base model, its files, heads and hidden states; checkpoints; classifiers."""
