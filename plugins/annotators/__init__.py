"""Annotators: who says which of two responses is better, and whether one is safe."""
