"""Where tasks run: on this machine's cores, or as Slurm array jobs."""
