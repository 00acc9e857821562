"""Built-in stages plugins."""
