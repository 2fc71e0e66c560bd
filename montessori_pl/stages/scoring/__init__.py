"""What the stage that scores consists of, besides the signal."""
