"""The two files a user writes: a job (what to search) and a site (how one cluster is used).

The sentence under a field is its documentation.
"""

from l2s_hpc.config.base import Config
from l2s_hpc.config.job import (
    OPERATIONAL,
    BudgetConfig,
    GeneConfig,
    ModelSource,
    NoiseConfig,
    SearchConfig,
    SplitsConfig,
)
from l2s_hpc.config.load import documented, flatten, load_job, load_site, science, validate
from l2s_hpc.config.site import SiteConfig

__all__ = [
    "OPERATIONAL",
    "BudgetConfig",
    "Config",
    "GeneConfig",
    "ModelSource",
    "NoiseConfig",
    "SearchConfig",
    "SiteConfig",
    "SplitsConfig",
    "documented",
    "flatten",
    "load_job",
    "load_site",
    "science",
    "validate",
]
