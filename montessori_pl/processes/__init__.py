"""How the processes of a run end: each by a signal, all of them together, and back into the queue of Slurm.

Knows nothing of models or of Lightning: what is here works while these are still being imported.
"""
