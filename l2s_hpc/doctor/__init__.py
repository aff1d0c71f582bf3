"""`l2s doctor`: checks for real whether a job can run on a site; each failure with its remedy.

`place`: this machine, the folder of runs, the job; `slurm`: what Slurm says of the site; `probe`:
what a small job sees on a node; `node`: this machine as a node, and two candidates through it.
"""

from l2s_hpc.doctor.check import Check
from l2s_hpc.doctor.examine import examine
from l2s_hpc.doctor.node import node_checks

__all__ = ["Check", "examine", "node_checks"]
