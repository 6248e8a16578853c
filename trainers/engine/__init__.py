"""Training: the shared trainers, checkpoints, run folders and exports."""
