"""What stages share in which models write: who writes, how a round is written, what it will take, and a guard."""
