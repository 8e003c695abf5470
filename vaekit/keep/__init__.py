"""What keeps a run alive and finds it again."""
