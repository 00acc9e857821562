"""Built-in rollouts plugins."""
