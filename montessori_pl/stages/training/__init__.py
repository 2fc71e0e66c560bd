"""What stages share that train: the fit itself, the pairs that are learned, and how much of it a teacher can take."""
