"""Offline analysis: pure functions of a run's files; no torch, no pymoo, no Slurm."""
