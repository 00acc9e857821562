"""What stages hand each other besides weights: prompts, samples and preferences on disk, and how they are chosen and rendered."""
