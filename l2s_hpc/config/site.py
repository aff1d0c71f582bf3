"""The site file: how one cluster, or this machine, is used."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from l2s_hpc.config.base import Config


class ControllerConfig(Config):
    """The controller as a small Slurm job (`l2s run --detach`)."""

    partition: str = ""
    """--partition; empty: the site's."""
    account: str = ""
    """--account; empty: the site's."""
    qos: str = ""
    """--qos; empty: the site's."""
    minutes: int = Field(1440, ge=1)
    """--time of one link of the chain; before it ends, the next link is submitted."""
    memory: str = "2G"
    """--mem; the controller needs about half a gigabyte."""
    mail: str = ""
    """--mail-user: Slurm writes there when a link of the chain ends or fails."""
    notify: str = ""
    """Your own shell command, run when the search pauses or ends; $L2S_RUN, $L2S_EVENT (`paused`,
    `completed`) and $L2S_MESSAGE say what happened."""
    sbatch: dict[str, str | int | bool] = {}
    """Any other flag of sbatch, without the dashes."""


class VllmConfig(Config):
    """Settings of the vllm engine. All but `cache` shape the running batch, so that they can change
    a token: they are a part of the protocol, and fixed for a run."""

    max_num_seqs: int = Field(256, ge=1)
    """Answers that are decoded together."""
    max_num_batched_tokens: int = Field(8192, ge=256)
    """Tokens of one step of the engine, prompts included."""
    kv_cache_tokens: int = Field(262_144, ge=1024)
    """Tokens for which the cache of keys and values has room; answers that do not fit wait, or are
    dropped and computed again. Enough: max_num_seqs x protocol.max_tokens / 5."""
    block_size: int = Field(32, ge=16, multiple_of=16)
    """Tokens of one block of that cache; on CPUs a multiple of 32."""
    eager: bool = False
    """Do without CUDA graphs and compilation: starts sooner, generates much more slowly."""
    speculate: int = Field(0, ge=0)
    """Tokens guessed ahead from what stands in prompt and answer already (n-grams); 0: none."""
    cache: str = ""
    """A folder of the node for vLLM's compiled code, that its tasks share; empty: in `scratch`, or
    vLLM's own."""


class SiteConfig(Config):
    """A site file: how one cluster, or this machine, is used."""

    name: str
    """The name of the site."""
    description: str = ""
    """A sentence for people."""
    executor: Literal["local", "slurm"]
    """local: worker processes on this machine; slurm: array jobs."""
    parallel: int = Field(0, ge=0)
    """local: number of workers; 0 means one per core, or with device = "cuda" one per GPU."""
    python: str = ""
    """The command that starts Python on the nodes, such as `/shared/venv/bin/python` or `apptainer
    exec --nv l2s.sif python`; empty means the interpreter that runs `l2s`."""
    engine: Literal["auto", "vllm", "transformers", "scripted"] = "auto"
    """vllm: fast, on GPUs and CPUs; transformers: needs no vLLM; auto: vllm on GPUs, transformers
    on CPUs; scripted: no model at all, for tests of the cluster side."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where models are merged and run."""
    threads: int = Field(1, ge=1)
    """CPU threads of one worker."""
    scratch: str = ""
    """A folder on the node's own disk that outlives a job, such as `/local/$USER` (not `$TMPDIR`
    where each job has its own): tasks share verified copies of the parents and vLLM's compiled code
    there. Empty: parents are read from where they lie."""
    batch_size: int = Field(50, ge=1)
    """Prompts that are decoded together by the transformers engine."""
    candidates_per_task: int = Field(1, ge=1)
    """Candidates of one task; each worker evaluates one after another in one warm engine. `plan`
    proposes a number once a candidate was measured."""
    workers_per_task: int = Field(1, ge=1)
    """Workers of one task, each with a GPU of its own: for sites that give whole nodes only."""
    gpu_memory: float = Field(0.0, ge=0)
    """Memory of one GPU in GB; a model that does not fit is refused by `plan`. 0: not known."""
    allow_mixed_gpus: bool = False
    """Accept tables from other kinds of GPU than the run's first one: on another kind greedy
    answers differ, so that candidates are no longer compared on equal terms."""
    attempts: int = Field(2, ge=1)
    """A candidate that failed this often in the same way, each time on another node where there is
    one, is penalised."""
    resubmit_cancelled: int = Field(0, ge=0)
    """How often a candidate whose task somebody cancelled is sent again by itself; after that the
    search pauses and asks (`--resubmit-cancelled`)."""
    node_faults: int = Field(3, ge=1)
    """slurm: a node on which this many candidates failed in a row is excluded and named."""
    disk_seconds: float = Field(300.0, ge=0)
    """How long a worker waits for room on a full disk before it gives its result up."""
    poll_seconds: float = Field(1.0, gt=0)
    """Seconds between two looks at Slurm and at the receipts."""
    grace_seconds: float = Field(60.0, ge=0)
    """How long a job that Slurm no longer knows may still show its receipt."""
    partition: str = ""
    """slurm: --partition."""
    account: str = ""
    """slurm: --account."""
    qos: str = ""
    """slurm: --qos."""
    constraint: str = ""
    """slurm: --constraint."""
    gres: str = ""
    """slurm: --gres, such as `gpu:1`."""
    cpus: int = Field(1, ge=1)
    """slurm: --cpus-per-task."""
    memory: str = ""
    """slurm: --mem, such as `64G`; empty means the partition's default."""
    minutes: int = Field(60, ge=1)
    """slurm: --time of one task."""
    throttle: int = Field(256, ge=1)
    """slurm: most tasks of one array that run at once (`%N`)."""
    max_jobs: int = Field(0, ge=0)
    """slurm: most array tasks of a run in the queue at once, the rest follows; 0: no limit."""
    setup: tuple[str, ...] = ()
    """slurm: shell lines before the worker, such as `module load cuda`; your own, not checked."""
    sbatch: dict[str, str | int | bool] = {}
    """slurm: any other flag of sbatch, without the dashes."""
    controller: ControllerConfig = ControllerConfig()
    """slurm: the detached controller."""
    vllm: VllmConfig = VllmConfig()
    """Settings of the vllm engine."""
    scripted: dict[str, Any] = {}
    """Settings of the scripted engine."""
    benchmarks: dict[str, str] = {}
    """Local JSONL or Parquet files of benchmarks, by name, used before the hub's cache."""
    models: dict[str, str] = {}
    """Local folders of models, by hub id, used before the hub's cache."""
