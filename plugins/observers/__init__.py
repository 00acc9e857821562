"""Built-in observers plugins."""
