"""The data of a run: examples, behaviors, labels, batches and the embedded stories."""
