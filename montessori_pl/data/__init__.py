"""What stages hand to each other, the file formats that are read, and how a conversation becomes token ids."""
