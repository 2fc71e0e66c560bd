"""What stages share that choose: among examples by their scores, or among teachers by a pool of their responses."""
