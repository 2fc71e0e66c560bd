"""From examples to batches of tensors: sources, encoding, padding, and which examples go together."""
