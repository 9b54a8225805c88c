"""The data of a run: examples, behaviours, labels, batches and the embedded stories."""
