"""Training on a DeepSpeed engine: the loop, and around it the world, checkpoints, evaluation and records."""
