"""fit(): training runs with checkpoints, resuming, and several processes."""
