"""A recipe as a whole: its steps in order, the checks before it runs, the outer loop, and the dry run."""
