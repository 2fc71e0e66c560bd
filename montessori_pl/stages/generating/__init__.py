"""What stages share in which models write: who writes, how a batch is written, what it will take, and a guard."""
