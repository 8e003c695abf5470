"""From any folder to arrays."""
