"""The page: verdicts and warnings first, then each run in sections, in one file that needs nothing beside it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from typing import Any

import montessori_pl
from montessori_pl.report.comparison import RunComparison
from montessori_pl.report.html import Markup, document, joined, tag
from montessori_pl.report.page.browsers import browsers, embedded, short
from montessori_pl.report.page.data_figures import data_figures, timeline
from montessori_pl.report.page.figures import Figure
from montessori_pl.report.page.run_data import RunData
from montessori_pl.report.page.score_figures import score_figures
from montessori_pl.report.page.student_figures import during_training, group_figures, student_figures
from montessori_pl.report.page.svg import figure
from montessori_pl.report.page.tables import cost_table, hash_table, sentence, verdict_table
from montessori_pl.report.page.teacher_figures import students_by_progress, teacher_figures
from montessori_pl.report.page.verdict import Verdict, group_verdicts, run_verdicts

MAX_BYTES = 4_800_000
"""Of a page, shared by its runs: what figures and tables leave of them is for rows."""
MAX_WARNINGS = 50
"""Warnings of a run that are shown."""
MAX_CONFIG = 100_000
"""Characters of a configuration that are shown."""
Questions = Mapping[str, tuple[str, str]]
"""For each item of a test set, what is asked and what is expected."""
VERSIONS = re.compile(r"^(torch|transformers|lightning|peft|vllm|openai|montessori-pl)==(\S+)$", re.MULTILINE)
"""Packages on which results depend, in the list that W&B keeps of a run's environment."""


def run_figures(run: RunData) -> dict[str, list[Figure]]:
    """All figures of a run, by section."""
    return {
        "students": [*student_figures(run), *during_training(run)],
        "scores": score_figures(run),
        "alignment": teacher_figures(run),
        "data": data_figures(run),
        "timeline": timeline(run),
    }


def comparison_figures(runs: Sequence[RunData], comparison: RunComparison | None) -> list[Figure]:
    """The figures of several runs together; none for one run."""
    if len(runs) < 2:
        return []
    if comparison is None:
        return students_by_progress({run.name: [run] for run in runs})
    by_root = {run.root: run for run in runs}
    groups = {group.name: [by_root[run.root] for run in group.runs] for group in comparison.groups}
    return [*group_figures(comparison), *students_by_progress(groups)]


@dataclass(frozen=True)
class RunPart:
    """What a page says of one run."""

    section: Markup
    lists: Mapping[str, Any]
    """The rows that the script shows."""


def run_part(
    run: RunData, questions: Questions, number: int = 0, count: int = 1, student: str | None = None
) -> RunPart:
    """What a page says of one run.

    Args:
        run: what was read of it.
        questions: of its test set, where they are known.
        number: its place on the page.
        count: runs on the page, which share its bytes.
        student: the student that is compared; none: the last of the last evaluation.
    """
    section = _section_of_run(number, run, student)
    room = MAX_BYTES // count - len(section.encode())
    return RunPart(section, browsers(run, questions, max(0, room)))


def write_page(
    parts: Sequence[RunPart], runs: Sequence[RunData], comparison: RunComparison | None, student: str | None = None
) -> str:
    """The page as HTML.

    Args:
        parts: what it says of each run.
        runs: what was read of each; their records are not needed any more.
        comparison: of the runs, where several are shown and some have finished.
        student: the student that is compared; none: the last of each run's last evaluation.
    """
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    top = _several(runs, comparison, student) if len(runs) > 1 else Markup()
    lists = embedded([part.lists for part in parts])
    body = [
        tag("header", tag("h1", f"Report: {title}"), _chooser(runs)),
        tag("main", top, *(part.section for part in parts)),
        tag("footer", f"Written by montessori-pl {montessori_pl.__version__} from run directories alone."),
        Markup(f'<script type="application/json" id="data">{lists}</script>'),
    ]
    return document(f"Report: {title}", _asset("page.css"), joined(body), _asset("page.js"))


def _chooser(runs: Sequence[RunData]) -> Markup:
    """A choice among runs, where there are several."""
    if len(runs) == 1:
        return Markup()
    options = [tag("option", run.name, value=number) for number, run in enumerate(runs)]
    return tag("label", "Run ", tag("select", *options, id="run"), class_="chooser")


def _several(runs: Sequence[RunData], comparison: RunComparison | None, student: str | None) -> Markup:
    by_root = {str(run.root): run for run in runs}
    verdicts = group_verdicts(comparison, by_root, student) if comparison is not None else []
    parts = [tag("h2", "All runs")]
    if comparison is None:
        parts.append(tag("p", "No run has finished the evaluation of its last iteration."))
    elif not comparison.baseline:
        parts.append(
            tag(
                "p",
                "There is no baseline that has finished; --baseline names the group with which others are compared.",
            )
        )
    parts += _verdict(verdicts)
    unfinished = [group for group in comparison.groups if group.unfinished] if comparison is not None else []
    for group in unfinished:
        states = ", ".join(f"{run.root.name}: {run.last_stage or 'none'}" for run in group.unfinished)
        said = f"{group.name}: {len(group.unfinished)} of {len(group.runs)} runs have not finished ({states})."
        parts.append(tag("p", said, class_="note"))
    warned = ", ".join(f"{run.name} ({len(run.warnings)})" for run in runs if run.warnings)
    if warned:
        parts.append(tag("p", f"Runs with warnings, which stand with each of them: {warned}.", class_="note"))
    parts.append(_figures(comparison_figures(runs, comparison)))
    return tag("section", *parts, class_="all")


def _section_of_run(number: int, run: RunData, student: str | None) -> Markup:
    """One run, from its verdict to its settings."""
    found = run_figures(run)
    unfinished = [stage.key for stage in run.stages.values() if not stage.finished]
    verdicts = run_verdicts(run, student)
    said = _verdict(verdicts)
    if not verdicts:
        reached = f"; it has reached {', '.join(unfinished)}" if unfinished else ""
        said = [tag("p", f"No evaluation of two students has finished{reached}.", class_="verdict")]
    elif unfinished:
        said.append(tag("p", f"The run has not finished: {', '.join(unfinished)}.", class_="note"))
    seed = f"seed {run.seed}, " if run.seed is not None else ""
    where = tag("p", f"{seed}{len(run.stages)} stages, ", tag("code", str(run.root)), class_="soft")

    def lists(name: str, stages: Iterable[bool]) -> Markup:
        return _list(number, name) if any(stages) else Markup()

    stages = run.stages.values()
    parts = {
        "Students": _figures(found["students"]),
        "Test items": lists("items", (bool(stage.answers) for stage in stages)),
        "Scores": _figures(found["scores"]),
        "Best and worst examples": lists("scored", (bool(stage.scores) for stage in stages)),
        "Preference pairs": lists("pairs", (bool(stage.pairs) for stage in stages)),
        "Alignment": _figures(found["alignment"]),
        "What the teacher wrote": lists("samples", (bool(stage.evaluations) for stage in stages)),
        "Data": _figures(found["data"]),
        "Rejections": lists("rejections", (bool(stage.rejections) for stage in stages)),
        "Timeline and cost": joined([_figures(found["timeline"]), cost_table(run)]),
        "Settings, hashes, versions": _settings(run),
    }
    ids = {title: f"run-{number}-{place}" for place, title in enumerate(parts) if parts[title]}
    links = [tag("a", title, href=f"#{id_}") for title, id_ in ids.items()]
    sections = [joined([tag("h3", title, id=id_), parts[title]]) for title, id_ in ids.items()]
    top = [tag("h2", run.name), where, *said, _warnings(run), tag("nav", *links, aria_label=f"Sections of {run.name}")]
    return tag("section", *top, *sections, class_="run", id=f"run-{number}")


def _verdict(verdicts: Sequence[Verdict]) -> list[Markup]:
    """A sentence for each two that are compared, then the table of all."""
    if not verdicts:
        return []
    groups = [[*some] for _, some in groupby(verdicts, key=lambda one: (one.who, one.baseline))]
    said = [tag("p", sentence(some), class_=f"verdict {some[0].word.replace(' ', '-')}") for some in groups]
    return [*said, verdict_table(verdicts)]


def _warnings(run: RunData) -> Markup:
    if not run.warnings:
        return tag("p", "No warnings.", class_="soft")
    shown = [tag("li", short(one)) for one in run.warnings[:MAX_WARNINGS]]
    if len(run.warnings) > MAX_WARNINGS:
        shown.append(tag("li", f"{len(run.warnings) - MAX_WARNINGS:,} more warnings"))
    return tag("ul", *shown, class_="warnings")


def _list(number: int, name: str) -> Markup:
    """Where the script puts the list of this name."""
    without = tag("noscript", tag("p", "This list needs JavaScript."))
    return tag("div", without, data_run=number, data_list=name)


def _figures(found: Sequence[Figure]) -> Markup:
    return tag("div", *map(figure, found), class_="figures") if found else Markup()


def _settings(run: RunData) -> Markup:
    config = run.config[:MAX_CONFIG] + ("\n…" if len(run.config) > MAX_CONFIG else "")
    parts = [tag("p", _versions(run))]
    if config:
        parts.append(tag("details", tag("summary", "config.yaml"), tag("pre", config)))
    parts.append(tag("details", tag("summary", "Hashes of all artifacts"), hash_table(run)))
    return joined(parts)


def _versions(run: RunData) -> str:
    """Those that the run's W&B directory knows."""
    lists = sorted(run.root.glob("wandb/*run-*/files/requirements.txt"))
    found = VERSIONS.findall(lists[-1].read_text(encoding="utf-8", errors="replace")) if lists else []
    if not found:
        return "The run has kept no list of package versions."
    return f"Versions in its last session: {', '.join(f'{name} {version}' for name, version in found)}."


def _asset(name: str) -> str:
    return files("montessori_pl.report.page").joinpath("assets", name).read_text(encoding="utf-8")
