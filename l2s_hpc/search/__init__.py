"""What to try next: objectives, references, and the evolutionary algorithm."""
