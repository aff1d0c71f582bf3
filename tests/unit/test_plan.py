"""What a search will cost: counts, speed from receipts, budgets, arrays, and what plan refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from l2s_hpc.cluster.resources import (
    Gres,
    allocation_notes,
    gpus_of,
    gres_of,
    megabytes_of,
    minutes_of,
    offers,
    wanted_gres,
)
from l2s_hpc.config import SearchConfig, SiteConfig, load_job, load_site
from l2s_hpc.controller import memory
from l2s_hpc.controller import plan as planning
from l2s_hpc.controller.forecast import (
    Counts,
    Speed,
    at_once,
    first_generation,
    forecast,
    speed_from,
    stage,
    within_budget,
)
from l2s_hpc.controller.plan import plan
from l2s_hpc.controller.resolve import Resolved, resolve
from l2s_hpc.controller.smoke import next_folder, smoke_runs
from l2s_hpc.errors import UserError
from l2s_hpc.recipes.models import token_bytes
from l2s_hpc.recipes.placement import merging_bytes
from l2s_hpc.store.layout import RunPaths
from tests.mini import Mini, state_of, write_mini

ROOT = Path(__file__).parents[2]
TOY = ROOT / "jobs" / "toy.toml"
SPEED = Speed(start=60, candidate=30, answer=2, receipts=1, places=("x",))
COUNTS = Counts(searched=18, first=20, later=10, generations=3, final=11)


def slurm(**settings: Any) -> SiteConfig:
    return SiteConfig.model_validate({"name": "s", "executor": "slurm", **settings})


def toy(*overrides: str, **settings: Any) -> Resolved:
    """The toy search on a site; no gene is asked whether it is dead."""
    return resolve(load_job(TOY, overrides), slurm(**settings), frozen={})


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Slurm's commands, on a machine that need not have any."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command(folder, "srun", "exit 0")
    command(folder, "scontrol", "exit 1")
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def longer(folder: Path, context: int) -> dict[str, str]:
    """A site's models with one parent of the toy family that has another context."""
    source, copy = ROOT / "data" / "toy" / "fast", folder / "fast"
    if not copy.exists():
        shutil.copytree(source, copy)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = context
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return {"shipped:toy/fast": str(copy)}


class TestWhatASiteAsksFor:
    @pytest.mark.parametrize(
        ("text", "minutes"),
        [
            ("30", 30),
            ("30:30", 30.5),
            ("01:30:00", 90),
            ("2-00:00:00", 2880),
            ("1-12", 2160),
            ("1-12:30", 2190),
            ("UNLIMITED", None),
            ("NONE", None),
            ("", None),
        ],
    )
    def test_time_limits(self, text: str, minutes: float | None) -> None:
        assert minutes_of(text) == minutes

    @pytest.mark.parametrize(
        ("text", "megabytes"),
        [("64G", 65536), ("300M", 300), ("300", 300), ("1T", 1048576), ("0", None), ("", None)],
    )
    def test_memory(self, text: str, megabytes: float | None) -> None:
        assert megabytes_of(text) == megabytes

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("gpu:a100:4(S:0-1),lustre:1", [Gres("gpu", "a100", 4), Gres("lustre", "", 1)]),
            ("gpu:2", [Gres("gpu", "", 2)]),
            ("gpu", [Gres("gpu", "", 1)]),
            ("gpu:h100", [Gres("gpu", "h100", 1)]),
            ("gres:gpu:1", [Gres("gpu", "", 1)]),
            ("gpu:nvidia_a100:2(IDX:0,3)", [Gres("gpu", "nvidia_a100", 2)]),
            ("", []),
        ],
    )
    def test_generic_resources(self, text: str, found: list[Gres]) -> None:
        assert gres_of(text) == found

    def test_a_type_counts_only_its_own_cards(self) -> None:
        node = gres_of("gpu:a100:2,gpu:h100:2")
        assert offers(node, Gres("gpu", "", 4)) and offers(node, Gres("gpu", "h100", 2))
        assert not offers(node, Gres("gpu", "h100", 3)) and not offers(node, Gres("fpga", "", 1))

    def test_gpus_asked_for_in_other_ways(self) -> None:
        site = slurm(sbatch={"gpus-per-node": "a100:4"})
        assert wanted_gres(site) == [Gres("gpu", "a100", 4)] and gpus_of(site) == 4
        assert gpus_of(slurm(sbatch={"gpus": 2})) == 2

    @pytest.mark.parametrize(
        ("settings", "word"),
        [
            ({"gres": "gpu:1"}, ""),
            ({"gres": "gpu:4", "workers_per_task": 4, "candidates_per_task": 8, "cpus": 4}, ""),
            ({}, "asks for no GPU"),
            ({"sbatch": {"exclusive": True}}, ""),
            ({"gres": "gpu:4"}, "3 would idle; set workers_per_task = 4"),
            (
                {"gres": "gpu:1", "workers_per_task": 2, "candidates_per_task": 2, "cpus": 2},
                "workers would share one",
            ),
            (
                {"gres": "gpu:4", "workers_per_task": 4, "candidates_per_task": 3, "cpus": 4},
                "without work: make it a multiple of 4",
            ),
            (
                {"gres": "gpu:4", "workers_per_task": 4, "candidates_per_task": 6, "cpus": 4},
                "no multiple of workers_per_task = 4",
            ),
            ({"gres": "gpu:1", "threads": 8, "cpus": 4}, "need more than cpus = 4"),
        ],
    )
    def test_what_does_not_fit_together_is_said(self, settings: Any, word: str) -> None:
        notes = allocation_notes(slurm(device="cuda", **settings))
        assert len(notes) == bool(word) and word in "".join(notes)


class TestContext:
    """Prompt and answer share the context of the merged model, the longest of all."""

    def test_an_answer_must_leave_room_for_a_prompt(self) -> None:
        toy("protocol.max_tokens=511")
        with pytest.raises(UserError) as error:
            toy("protocol.max_tokens=512", "protocol.budgets={toy_hard=600}")
        assert error.value.exit_code == 2
        lines = error.value.message.splitlines()
        said = "leaves no room for a prompt in the merged model's context of 512 tokens"
        assert [line.partition(" (")[0] for line in lines] == [
            f"protocol.max_tokens = 512 {said}",
            f"protocol.budgets.toy_hard = 600 {said}",
        ]

    def test_the_longest_context_counts(self, tmp_path: Path) -> None:
        toy("protocol.max_tokens=1023", models=longer(tmp_path, 1024))
        with pytest.raises(UserError, match="context of 1024 tokens"):
            toy("protocol.max_tokens=1024", models=longer(tmp_path, 1024))
        with pytest.raises(UserError, match="context of 512 tokens"):
            toy("protocol.max_tokens=512", models=longer(tmp_path, 256))

    def test_a_limit_that_no_benchmark_uses_is_not_checked(self) -> None:
        budgets = "{toy_easy=9, toy_mid=9, toy_hard=9, toy_distract=9}"
        toy("protocol.max_tokens=600", f"protocol.budgets={budgets}")

    def test_nor_is_an_engine_without_a_model(self) -> None:
        toy("protocol.max_tokens=600", engine="scripted")


class TestCounts:
    def test_the_grid_has_an_axis_for_each_parameter_and_model_that_is_searched(self) -> None:
        found = first_generation(toy("search.grid=3")).counts
        # Two parents of one parameter, whatever the number of groups; both parents, the average
        # and the two other points of the sweep are no points of the grid of base and vectors.
        assert found.searched == 9 and found.first == 9 + 5
        assert found.search == 14 + 3 * 10

    def test_frozen_genes_have_no_axis(self) -> None:
        config = load_job(TOY, ["search.grid=3"])
        frozen = {f"weight.fast.{group}": 0.5 for group in ("ends", "low", "mid", "top")}
        resolved = resolve(config, slurm(), frozen=frozen)
        assert first_generation(resolved).counts.searched == 3

    def test_no_generation_no_candidate(self) -> None:
        assert COUNTS.up_to(0) == 0 and COUNTS.up_to(1) == 20 and COUNTS.search == 40


class TestForecast:
    def test_a_stage_in_tasks(self) -> None:
        site = slurm(candidates_per_task=8, workers_per_task=4)
        whole = stage(20, 5, site)
        assert (whole.tasks, whole.workers) == (3, 12)
        rest = stage(18, 5, site)
        assert (rest.tasks, rest.workers) == (3, 10)
        assert rest.seconds(SPEED) == 10 * 60 + 18 * (30 + 5 * 2)

    def test_one_worker_a_task(self) -> None:
        assert stage(5, 1, slurm(candidates_per_task=2)).workers == 3
        local = SiteConfig(name="l", executor="local", parallel=2)
        assert stage(5, 1, local).workers == 2 and at_once(local) == 2

    def test_tasks_at_once(self) -> None:
        assert at_once(slurm(throttle=8)) == 8
        assert at_once(slurm(throttle=8, max_jobs=2)) == 2
        assert at_once(slurm(throttle=8, max_jobs=20)) == 8

    def test_hours_and_clock(self) -> None:
        resolved = toy("splits.search.max_items=5", candidates_per_task=2, throttle=5)
        answers = 4 * 5
        each = 30 + answers * 2
        found = forecast(resolved, COUNTS, SPEED)
        assert found.generations[0] * 3600 == pytest.approx(10 * 60 + 20 * each)
        assert found.generations[1] * 3600 == pytest.approx(5 * 60 + 10 * each)
        assert found.report * 3600 == pytest.approx(6 * 60 + 11 * (30 + 200 * 2))
        assert found.noise == 0
        assert found.total == pytest.approx(sum(found.generations) + found.selection + found.report)
        assert found.longest_task == 60 + 2 * (30 + 200 * 2)
        # Ten tasks, five at once: two waves; then one wave each; of six tasks for eleven candidates
        # the last has one candidate and waits for one of the five.
        search = (2 + 1 + 1) * (60 + 2 * each)
        selected, reported = 30 + 100 * 2, 30 + 200 * 2
        final = 2 * 60 + 3 * selected + 2 * 60 + 3 * reported
        assert found.hours * 3600 == pytest.approx(search + final)

    def test_twins_answer_the_selection_items_again(self) -> None:
        counts = replace(COUNTS, twins=3)
        resolved = toy(candidates_per_task=2, throttle=5)
        without, found = forecast(resolved, COUNTS, SPEED), forecast(resolved, counts, SPEED)
        assert found.noise * 3600 == pytest.approx(2 * 60 + 3 * (30 + 100 * 2))
        assert found.total - without.total == pytest.approx(found.noise)
        assert (found.hours - without.hours) * 3600 == pytest.approx(60 + 2 * (30 + 100 * 2))
        assert first_generation(resolved).counts.twins == 3
        assert first_generation(toy("noise.twins=0")).counts.twins == 0


class TestBudget:
    def config(self, **limits: Any) -> SearchConfig:
        given = [f"budget.{key}={value}" for key, value in limits.items()]
        return load_job(TOY, given)

    def fitting(self, measured: bool = True, **limits: Any) -> int | None:
        found = forecast(toy("splits.search.max_items=5"), COUNTS, SPEED) if measured else None
        now = datetime(2027, 1, 1, tzinfo=UTC)
        (row,) = within_budget(self.config(**limits), COUNTS, found, now)
        assert row["of"] == 3
        fit = row["generations_that_fit"]
        assert fit is None or isinstance(fit, int)
        return fit

    def test_none(self) -> None:
        assert within_budget(self.config(), COUNTS, None) == []

    @pytest.mark.parametrize(("most", "fit"), [(17, 0), (18, 1), (37, 2), (38, 3), (99, 3)])
    def test_candidates(self, most: int, fit: int) -> None:
        assert self.fitting(measured=False, max_candidates=most) == fit

    def test_gpu_hours_with_selection_and_report_reserved(self) -> None:
        found = forecast(toy("splits.search.max_items=5"), COUNTS, SPEED)
        final = found.selection + found.report
        assert self.fitting(max_gpu_hours=final) == 0
        assert self.fitting(max_gpu_hours=final + found.generations[0] + 0.001) == 1
        assert self.fitting(max_gpu_hours=found.total + 0.001) == 3

    def test_unknown_where_nobody_has_measured(self) -> None:
        assert self.fitting(measured=False, max_gpu_hours=1) is None
        assert self.fitting(measured=False, deadline='"2027-01-01T00:00:00Z"') is None

    @pytest.mark.parametrize(
        ("deadline", "fit"), [("2026-12-31T00:00:00Z", 0), ("2027-02-01T00:00:00Z", 3)]
    )
    def test_deadline(self, deadline: str, fit: int) -> None:
        assert self.fitting(deadline=f'"{deadline}"') == fit


@pytest.mark.usefixtures("commands")
class TestPlan:
    def planned(self, folder: Path, *overrides: str, **settings: Any) -> dict[str, Any]:
        # Nine points of the grid and five references.
        return plan(toy("search.grid=3", *overrides, **settings), RunPaths(folder / "run"))

    def test_one_array(self, tmp_path: Path) -> None:
        found = self.planned(tmp_path, throttle=5)
        (part,) = found["sbatch"]
        assert (part["arrays"], part["tasks"]) == (1, 14)
        assert part["largest_array_of_cluster"] is None
        assert "#SBATCH --array=0-13%5\n" in part["text"]
        assert found["tasks"]["first_generation"] == found["tasks_of_first_generation"] == 14
        assert "14 candidates of the first generation in 14 tasks" in found["tasks"]["meaning"]

    def test_arrays_are_split_where_the_cluster_says_its_limit(
        self, tmp_path: Path, commands: Path
    ) -> None:
        command(commands, "scontrol", "echo 'MaxArraySize            = 6'")
        found = self.planned(tmp_path)
        assert [(part["arrays"], part["tasks"]) for part in found["sbatch"]] == [(2, 6), (1, 2)]
        assert "--array=0-5%6" in found["sbatch"][0]["text"]
        assert "--array=0-1%2" in found["sbatch"][1]["text"]

    def test_and_at_the_sites_own_limit(self, tmp_path: Path) -> None:
        found = self.planned(tmp_path, max_jobs=10)
        assert [(part["arrays"], part["tasks"]) for part in found["sbatch"]] == [(1, 10), (1, 4)]
        assert "at most 10 tasks at once" in found["tasks"]["meaning"]

    def test_workers_are_explained(self, tmp_path: Path) -> None:
        site = {"gres": "gpu:4", "workers_per_task": 4, "candidates_per_task": 8, "cpus": 4}
        found = self.planned(tmp_path, device="cuda", **site)
        assert "in 2 tasks, at most 8 each; a task has 4 workers" in found["tasks"]["meaning"]
        assert any("one on each GPU: that fits" in note for note in found["notes"])

    def test_noise_twins_are_counted(self, tmp_path: Path) -> None:
        found = self.planned(tmp_path)
        assert found["tasks"]["noise"] == 3 and found["answers"]["noise"] == 3 * 100
        assert "noise" not in found["items"], "they are those of selection"
        none = self.planned(tmp_path, "noise.twins=0")
        assert none["tasks"]["noise"] == none["answers"]["noise"] == 0

    def test_nobody_has_measured_it(self, tmp_path: Path) -> None:
        found = self.planned(tmp_path)
        assert found["gpu_hours"] is None and found["cost"] is None and found["budget"] == []

    def test_a_machine_without_slurm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        found = self.planned(tmp_path)
        assert "#SBATCH --cpus-per-task" in found["sbatch"][0]["text"]
        assert found["sbatch"][0]["largest_array_of_cluster"] is None

    def test_it_says_engine_and_placement(self, tmp_path: Path) -> None:
        found = self.planned(tmp_path, device="cuda", gres="gpu:1", gpu_memory=80)
        assert found["engine"]["name"] == "vllm" == found["protocol"]["engine"]
        assert found["engine"]["why"] == 'site.engine = "auto", site.device = "cuda"'
        assert found["engine"]["fixed"]["max_num_seqs"] == 256
        assert found["placement"].startswith("parents on the GPU: ")
        other = self.planned(tmp_path, device="cpu", engine="vllm", threads=1)
        assert other["engine"]["why"] == 'site.engine = "vllm"'
        assert other["engine"]["fixed"]["threads"] == 1

    def test_weights_and_cache_must_fit_into_one_gpu(self, tmp_path: Path) -> None:
        weights = memory.merged_gigabytes(toy())
        assert weights == pytest.approx(2 * 847_488 / 1e9)
        # Four layers, keys and values, two heads of 32 numbers, two bytes each.
        assert memory.token_bytes(toy()) == 4 * 2 * 2 * 32 * 2
        need = weights + 1024 * 262_144 / 1e9
        self.planned(tmp_path, device="cuda", gres="gpu:1", gpu_memory=need / 0.899)
        self.planned(tmp_path, device="cpu", gpu_memory=weights / 2)
        with pytest.raises(UserError, match=r"0\.3 GB of keys and values") as error:
            self.planned(tmp_path, device="cuda", gres="gpu:1", gpu_memory=need / 0.901)
        assert error.value.exit_code == 2
        # The hint's number of tokens is one with which it fits.
        tokens = int(re.findall(r"kv_cache_tokens to at most (\d+)", error.value.hint or "")[0])
        assert tokens % 32 == 0 and 261_000 < tokens < 262_144
        vllm = {"kv_cache_tokens": tokens}
        self.planned(tmp_path, device="cuda", gres="gpu:1", gpu_memory=need / 0.901, vllm=vllm)

    def test_without_room_for_one_answer_fewer_tokens_are_no_help(self, tmp_path: Path) -> None:
        weights = memory.merged_gigabytes(toy())
        with pytest.raises(UserError) as error:
            self.planned(tmp_path, device="cuda", gres="gpu:1", gpu_memory=weights / 0.89)
        hint = error.value.hint or ""
        assert "kv_cache_tokens" not in hint
        assert "search smaller models, or use GPUs with at least 1 GB" in hint

    def test_an_engine_without_a_pinned_cache_keeps_a_larger_reserve(self, tmp_path: Path) -> None:
        weights = memory.merged_gigabytes(toy())
        gpu = {"device": "cuda", "gres": "gpu:1", "engine": "transformers"}
        found = self.planned(tmp_path, **gpu, gpu_memory=weights / 0.79)
        assert found["memory"]["kv_cache_gb"] == 0
        with pytest.raises(UserError, match="20% are left for all else, the cache of keys"):
            self.planned(tmp_path, **gpu, gpu_memory=weights / 0.81)

    def test_merges_that_may_find_no_room_are_noted(self, tmp_path: Path) -> None:
        """Room for 12 bytes of each number of the largest tensor, the result's and the inputs'."""
        gpu = {"device": "cuda", "gres": "gpu:1", "engine": "transformers"}
        need = memory.merged_gigabytes(toy()) + merging_bytes(toy().models) / 1e9
        (note,) = self.planned(tmp_path, **gpu, gpu_memory=need * 0.99)["notes"]
        assert note.startswith("merges may run out of memory: beside 0.0 GB of weights")
        assert note.endswith("use GPUs with at least 1 GB")
        assert not self.planned(tmp_path, **gpu, gpu_memory=need * 1.01)["notes"]
        assert not self.planned(tmp_path, device="cpu", gpu_memory=need * 0.99)["notes"]

    def test_a_real_model_in_numbers(self) -> None:
        """Qwen2.5-7B: 28 layers, 4 heads of keys and values, 128 numbers a head."""
        shape = {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
        shape["hidden_size"] = 3584
        assert token_bytes(shape) == 57_344
        assert token_bytes(shape | {"head_dim": 64}) == 28_672

    def test_a_cache_too_small_for_one_answer_is_noted(self, tmp_path: Path) -> None:
        settings = {"device": "cuda", "gres": "gpu:1", "models": longer(tmp_path, 4096)}
        vllm = {"kv_cache_tokens": 1024, "max_num_seqs": 4}
        longest = sum(memory.longest_answer(toy()))
        enough = self.planned(tmp_path, **settings, vllm=vllm)
        assert longest < 1024 and not enough["notes"]
        over = "protocol.budgets={toy_hard=1000}"
        found = self.planned(tmp_path, over, **settings, vllm=vllm)
        assert any(
            "kv_cache_tokens = 1024 cannot hold one longest answer: 1000 generated tokens" in note
            for note in found["notes"]
        )

    def test_a_cache_too_small_for_the_answers_under_way_is_noted(self, tmp_path: Path) -> None:
        """Three quarters of the report split's 200 items may have 230 tokens, the others 400."""
        gpu: dict[str, Any] = {"device": "cuda", "gres": "gpu:1"}

        def said(tokens: int, *overrides: str, seqs: int = 256, **settings: Any) -> list[str]:
            vllm = {"kv_cache_tokens": tokens, "max_num_seqs": seqs}
            overrides = ("protocol.budgets={toy_hard=400}", *overrides)
            notes: list[str] = self.planned(tmp_path, *overrides, **settings, vllm=vllm)["notes"]
            return notes

        wanted = (150 * 230 + 50 * 400) // 5
        (note,) = said(wanted - 1, **gpu)
        assert note.startswith(f"site.vllm.kv_cache_tokens = {wanted - 1} may be too few: ")
        assert f"can hold {wanted} tokens together" in note
        assert not said(wanted, **gpu)
        # Fewer at a time, by the engine's limit or the chunk's; more by samples; another engine.
        assert f"hold {wanted // 2} tokens" in said(2000, seqs=100, **gpu)[0]
        assert f"hold {wanted // 4} tokens" in said(2000, "protocol.chunk_items=50", **gpu)[0]
        sampled = ("protocol.samples=2", "protocol.temperature=0.5")
        assert f"hold {wanted * 256 // 200} tokens" in said(2000, *sampled, **gpu)[0]
        assert not said(2000, engine="transformers", **gpu)

    def test_examples_make_prompts_longer(self) -> None:
        resolved = toy()
        prompt, answer = memory.longest_answer(resolved)
        search = resolved.evaluations["search"]
        shots = (("1+1?", "It is π."), ("x", "y"))
        protocol = search.protocol.model_copy(update={"shots": shots})
        described = {"search": search.model_copy(update={"protocol": protocol})}
        longer = replace(resolved, evaluations={**resolved.evaluations, **described})
        # 4 + 9 + 1 + 1 bytes, and what the preset puts around each of two examples.
        assert memory.longest_answer(longer) == (prompt + 15 + 2 * 128, answer)

    def test_large_models_are_noted_where_the_gpu_is_not_known(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(memory, "merged_gigabytes", lambda resolved: 29.5)
        notes = self.planned(tmp_path, device="cuda", gres="gpu:1")["notes"]
        assert any(
            "29.5 GB of weights in bfloat16 and 0.3 GB of keys" in note
            and "site.gpu_memory" in note
            for note in notes
        )
        assert not self.planned(tmp_path, device="cpu")["notes"]

    def test_budgets_bound_the_outputs(self, tmp_path: Path) -> None:
        whole = self.planned(tmp_path)["largest_output_bytes"]
        part = self.planned(tmp_path, "protocol.budgets={toy_hard=115}")["largest_output_bytes"]
        assert part == pytest.approx(whole * 7 / 8, rel=1e-6)

    def test_candidates_per_task_are_proposed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = [f"splits.{name}.max_items=1" for name in ("search", "selection", "report")]
        settings: dict[str, Any] = {"throttle": 4, "candidates_per_task": 1}
        found = self.planned(tmp_path, *small, **settings)["candidates_per_task"]
        assert found["proposed"] is None and not found["compared"]
        assert "`l2s plan --probe` or `l2s run --smoke`" in found["meaning"]
        monkeypatch.setattr(planning, "speed_from", lambda folder, protocol: SPEED)
        found = self.planned(tmp_path, *small, **settings)["candidates_per_task"]
        ours, best = found["compared"]
        # Ten candidates, 60 s of start, 30 + 4 * 2 = 38 s each; four at once.
        assert (ours["choice"], ours["candidates_per_task"], ours["tasks"]) == ("site", 1, 10)
        assert ours["generation_minutes"] == pytest.approx(3 * 98 / 60, abs=0.01)
        assert ours["start_share"] == pytest.approx(600 / 980, abs=0.001)
        assert (best["choice"], found["proposed"], best["tasks"]) == ("proposed", 3, 4)
        assert best["generation_minutes"] == pytest.approx((60 + 3 * 38) / 60, abs=0.01)
        assert best["start_share"] == pytest.approx(240 / 620, abs=0.001)
        assert found["meaning"] == "1; 3 is proposed, where 4 tasks can run at once"

    def test_a_task_that_would_be_cut(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(planning, "speed_from", lambda folder, protocol: SPEED)
        found = self.planned(tmp_path, "budget.max_candidates=25", minutes=8)
        # 60 s of start, 30 s of merging, 200 answers of the report split: 490 s.
        assert found["cost"]["longest_task_minutes"] == pytest.approx(490 / 60, abs=0.01)
        assert any("expected to take 8 minutes, and site.minutes = 8" in n for n in found["notes"])
        assert found["budget"][0]["generations_that_fit"] == 2
        assert not self.planned(tmp_path, minutes=9)["notes"]


@pytest.mark.slow
def test_genes_are_measured_in_an_interpreter_of_several_words() -> None:
    config = load_job(TOY)
    here = resolve(config, slurm(python=f"env X=1 {sys.executable}"))
    assert here.liveness == "measured on small tensors"
    elsewhere = resolve(config, slurm(python="no-such-apptainer exec image.sif python"))
    assert elsewhere.liveness.startswith("from canonical recipes, not measured: ")


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    return write_mini(tmp_path_factory.mktemp("mini"))


def l2s(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "l2s_hpc.cli.main", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


def plan_words(mini: Mini, run: Path) -> list[str | Path]:
    return ["plan", mini.job, "--site", mini.site, "--run", run, "--json"]


@pytest.fixture(scope="module")
def probed(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run, and the plan that a probe had made before it."""
    run = tmp_path_factory.mktemp("probed") / "run"
    done = l2s(*plan_words(mini, run), "--probe")
    assert done.returncode == 0, done.stderr
    assert not run.exists() and smoke_runs(run) and next_folder(run).name == "2"
    mini.run(run)
    return run, json.loads(done.stdout)


@pytest.mark.slow
def test_a_probe_measures_what_the_search_then_costs(
    mini: Mini, probed: tuple[Path, dict[str, Any]]
) -> None:
    run, before = probed
    assert before["gpu_hours"] > 0 and before["cost"]["measured_on"] == 1
    assert before["cost"]["from"] == [str(run.with_name("run.smoke") / "1")]
    state = state_of(run)
    after = json.loads(l2s(*plan_words(mini, run)).stdout)
    assert after["cost"]["from"] == [str(run)]
    assert after["cost"]["measured_on"] == len(state.accepted)
    # Repeats cost nothing, so that the forecast is an upper bound of the candidates.
    searched = [candidate for name, candidate in state.accepted if name == "search"]
    assert len(searched) <= before["candidates"]
    of_first = {*state.generations[0].candidates, *before["references"].values()}
    resolved = resolve(load_job(mini.job), load_site(mini.site), frozen={})
    assert first_generation(resolved).counts.first == len(of_first)


@pytest.mark.slow
def test_another_protocol_was_not_measured(mini: Mini, probed: tuple[Path, dict[str, Any]]) -> None:
    other = l2s(*plan_words(mini, probed[0]), "--set", "protocol.max_tokens=90")
    assert json.loads(other.stdout)["gpu_hours"] is None


@pytest.mark.slow
def test_damaged_receipts_measure_nothing(
    mini: Mini, probed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert speed_from(run, "0" * 16) is None
    shutil.copytree(probed[0], run)
    resolved = resolve(load_job(mini.job), load_site(mini.site), frozen={})
    protocol = resolved.evaluations["search"].protocol.hash
    whole = speed_from(run, protocol)
    receipt = next((run / "receipts" / "search").rglob("*.json"))
    receipt.unlink()
    receipt.write_text("{", encoding="utf-8")
    fewer = speed_from(run, protocol)
    assert whole is not None and fewer is not None and fewer.receipts == whole.receipts - 1


def test_names_that_run_refuses_are_refused(mini: Mini, tmp_path: Path) -> None:
    words = [mini.job, "--site", mini.site, "--set", "name=../mine"]
    told = [l2s(verb, *words, "--run", tmp_path / "run") for verb in ("run", "plan")]
    assert [done.returncode for done in told] == [2, 2]
    assert told[0].stderr == told[1].stderr and "cannot be a name here" in told[0].stderr


def test_plan_prints_what_it_foresees(mini: Mini, tmp_path: Path) -> None:
    words = ["plan", mini.job, "--site", mini.site, "--run", tmp_path / "run"]
    done = l2s(*words, "--set", "budget.max_candidates=9")
    assert done.returncode == 0, done.stderr
    assert "unknown (`l2s plan --probe` or `l2s run --smoke` measures it)" in done.stdout
    assert "Budget: how many generations fit" in done.stdout
