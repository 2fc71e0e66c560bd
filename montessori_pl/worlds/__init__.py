"""What is made on first use and kept in the cache beside the classroom: checkpoints of GGUF files, and the gym."""
