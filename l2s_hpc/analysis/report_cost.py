"""The part of a report on what the run took: time, tries, nodes, and what was given up."""

from __future__ import annotations

from l2s_hpc.analysis.chart_time import genome_keys, genomes_chart, phase_keys, time_chart
from l2s_hpc.analysis.cost import Cost
from l2s_hpc.analysis.figures import Figures
from l2s_hpc.analysis.forensics import Forensics, Queue
from l2s_hpc.analysis.nodes import differences
from l2s_hpc.analysis.page import Child, Html, el, join, sorted_by, table
from l2s_hpc.analysis.run import Run
from l2s_hpc.analysis.words import known, name_of, node_table, stretch


def cost_section(run: Run, figures: Figures) -> Html:
    """Return what the run has cost, by phase, by evaluation and by generation."""
    found = run.cost()
    total = 3600 * found.device_hours
    phases = sum(found.seconds.values())
    rows: list[list[Child]] = [
        [
            kind,
            name,
            sorted_by(seconds, stretch(seconds)),
            f"{seconds / whole:.1%}" if whole else "–",
        ]
        for kind, part, whole in (
            ("phase", found.seconds, phases),
            ("evaluation", found.evaluations, total),
        )
        for name, seconds in part.items()
    ]
    waits = run.forensics().queue
    if waits is not None:
        total_wait = sorted_by(waits.total, stretch(waits.total))
        rows.append(["queue", "all tasks, from submission to start", total_wait, "–"])
    parts = table(["by", "", "time", "share"], rows, {0, 1}) if rows else Html("")
    said = [el("p", sentence) for sentence in (_words(found), *_waits(waits))]
    return join([el("h2", "Cost"), *said, _generations(run, figures), parts])


def genomes_section(run: Run, figures: Figures) -> Html:
    """Return what became of the genomes that the algorithm asked for."""
    found = run.forensics()
    if not found.generations:
        return Html("")
    shares = _asked(found)
    drawn = figures.place(
        "genomes",
        genomes_chart(found),
        f"What became of the {sum(g.asked for g in found.generations)} genomes of "
        f"{len(found.generations)} generations; counts, no estimates. {shares}",
        title=f"{run.info.name}: genomes by generation",
        note="what became of each genome that the algorithm asked for",
        keys=genome_keys(found),
    )
    return join([el("h2", "Genomes asked for"), drawn])


def nodes_section(run: Run, figures: Figures) -> Html:
    """Return the nodes side by side."""
    found = run.nodes()
    if not found:
        return Html("")
    words = (
        "Medians over the score tables of each node, peaks of memory over all of them. Start "
        "is that of workers that started; a warm one goes on without."
    )
    odd = [el("p", sentence, class_="notice") for sentence in differences(found)]
    return join([el("h2", "Nodes"), el("p", words), *odd, node_table(found)])


def tries_section(run: Run, figures: Figures) -> Html:
    """Return which attempts failed, and which candidates were given up."""
    tries: list[list[Child]] = [
        [name_of(run, a.candidate), a.evaluation, str(a.attempt), a.node or "–", a.kind,
         "yes" if a.counted else "no", el("span", a.message, class_="wrap")]
        for a in run.state.failures
    ]  # fmt: skip
    given_up: list[list[Child]] = [
        [name_of(run, candidate), evaluation, el("span", reason, class_="wrap")]
        for (evaluation, candidate), reason in run.state.penalised.items()
    ]
    parts: list[Html] = []
    if given_up:
        words = "These failed as often as the site allows, and count as the worst possible."
        head = ["candidate", "evaluation", "reason"]
        parts += [el("p", words), table(head, given_up, range(3))]
    else:
        parts.append(el("p", "No candidate was given up."))
    if tries:
        head = ["candidate", "evaluation", "attempt", "node", "fault", "counted", "message"]
        listed = table(head, tries, {0, 1, 3, 4, 5, 6})
        title = el("summary", f"All {len(tries)} attempts that left no table")
        parts.append(el("details", title, listed))
    return join([el("h2", "Given up"), *parts])


def _words(found: Cost) -> str:
    total, each = 3600 * found.device_hours, found.seconds_per_candidate
    words = (
        f"{found.accepted} score tables took {stretch(total)} of device time"
        + (f", {stretch(each)} each" if each is not None else "")
        + (f" ({found.gpu_idle:.1%} of it idle)" if found.gpu_idle is not None else "")
        + f", from {found.attempts} attempts: {found.failed} failed, {found.lost} were lost or "
        f"interrupted, {found.penalised} candidates were given up. "
    )
    if found.wasted_hours:
        words += f"Attempts that left no table took {stretch(3600 * found.wasted_hours)} more. "
    if found.hours_per_candidate is not None:
        words += (
            f"All together that is {stretch(3600 * found.hours_per_candidate)} of a device for "
            f"each of {found.candidates} accepted models. "
        )
    return words + (
        f"Of {found.asked} genomes asked for, {found.repeats} gave a known model at no cost."
        if found.asked
        else ""
    )


def _waits(queue: Queue | None) -> list[str]:
    if queue is None:
        return []
    return [
        f"From its submission to its first candidate a task waited {stretch(queue.median)} "
        f"(median of {queue.tasks} tasks), at most {stretch(queue.longest)}."
    ]


def _generations(run: Run, figures: Figures) -> Html:
    found = run.forensics()
    if not any(g.seconds for g in found.generations):
        return Html("")
    n = sum(g.tables for g in found.generations)
    drawn = figures.place(
        "time",
        time_chart(found),
        f"Where the time of the {n} score tables of the search went, summed over all devices; "
        "measured, no estimates. A candidate is graded and written while the next one generates, "
        "so that a column may be more than the device's time.",
        title=f"{run.info.name}: time by generation",
        note=f"seconds of the {n} score tables of the search, by phase",
        keys=phase_keys(found),
    )
    rows: list[list[Child]] = [
        [
            str(g.number), str(g.tables), str(g.failed), str(g.penalised),
            sorted_by(g.device_seconds, stretch(g.device_seconds)),
            *(
                sorted_by(seconds, stretch(seconds)) if seconds else "–"
                for seconds in (g.wasted_seconds, g.wall_seconds)
            ),
            known(g.idle, "{:.1%}"),
        ]
        for g in found.generations
    ]  # fmt: skip
    head = ["generation", "tables", "failed tries", "given up", "device time", "without a table",
            "from asking to telling", "idle"]  # fmt: skip
    title = el("summary", "The generations in figures")
    return join([drawn, el("details", title, table(head, rows, {0}))])


def _asked(found: Forensics) -> str:
    counted = [(found.genomes[kind], words) for kind, words in _KINDS.items()]
    return "; ".join(f"{count} {words}" for count, words in counted if count) + "."


_KINDS = {
    "new": "were new models",
    "same genome": "were asked for before",
    "equivalent genome": "are other genomes of a known model",
    "reference": "are a parent, the plain average or a point of the sweep",
}
