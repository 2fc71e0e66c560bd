"""What a run has written, in files that other programs train on, with a card that says where it came from."""
