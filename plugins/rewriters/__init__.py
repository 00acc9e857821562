"""Rewriters of samples: what turns a trace that was kept into a text to learn from."""
