"""What is printed: means by arm, comparisons, collapsed students, the cells one by one, and how to read them."""

import statistics
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from study.comparisons import SPREADS, Comparison, collapse_limits, collapsed, compare, finished, share_of_headroom
from study.measures import ALL_MEASURES, MEASURES, Cell
from study.settings import Settings

IN_EACH_CELL = (
    *("accuracy", "reference loss", "test loss", "influence after"),
    *("family entropy", "target share", "hard share", "right answers", "selected step"),
)
"""The measures that are shown of each cell."""
READING = f"""
A cell is a world and a seed; an arm's number in a cell is the mean over its students. Better: cells in which the arm is
better than its rival; higher: where neither is better. Cells of one world share its teacher, base student, reference
and test set. 95% by t and over cells: Student's t, and the bootstrap that draws cells; both speak about other seeds in
these worlds, not about other worlds. Over worlds: the bootstrap that draws worlds, and then seeds within each; it
speaks about other worlds, and is too narrow where there are few. No interval is corrected for how many there are.
Influence before: the unaligned teacher's probing data. Influence after: a sample of the arm's own training data, for
Self-Instruct therefore the unaligned teacher's. All on the same warm student, which Self-Instruct itself lacks.
Hard share: of the target skills that the base student does not know in chat form. Malformed: of no family of tasks.
Held out: instructions that equal a reference or test item, and were dropped. Duplicates are dropped as well, so that
the distinct rate is 1 unless something is wrong. Right answers: among the target skills. Selected step: of the
alignment, after which the teacher is taken; evaluations: how often it was evaluated on the way.
Collapsed: the reference loss is worse than the baseline's in the same cell by more than {SPREADS} standard deviations
of the baseline's single students in that world. Seconds: of the arm's own run, copied stages included.
""".strip()


def print_study(console: Console, cells: Sequence[Cell], settings: Settings) -> None:
    """All tables, and what must be known to read them."""
    for title in MEASURES:
        console.print(_means(title, cells, settings))
    found = compare(cells, settings.pairs)
    for pair in settings.pairs:
        if rows := [one for one in found if (one.ours, one.rival) == pair]:
            console.print(_comparison(rows, settings))
    if settings.oracle:
        console.print(_headroom(cells, settings))
    console.print(_collapsed(cells, settings))
    if overdosed := [name for name in settings.overdosed if name in settings.chosen]:
        console.print(_overdosed(cells, settings, overdosed))
    console.print(_each(cells, settings))
    console.print(READING, soft_wrap=True)


def _means(title: str, cells: Sequence[Cell], settings: Settings) -> Table:
    """Measures down, arms across, each mean over the cells in which the arm finished."""
    table = _table(f"{title}: means over cells", "measure")
    of_arm = {name: list(finished(cells, name).values()) for name in settings.chosen}
    for name, ours in of_arm.items():
        table.add_column(f"{settings.arms[name].title}\n({_count(len(ours), 'cell')})", justify="right")
    for one in MEASURES[title]:
        table.add_row(
            one.name,
            *(_mean([cell.measures.get(one.name) for cell in ours], one.digits) for ours in of_arm.values()),
        )
    return table


def _comparison(rows: Sequence[Comparison], settings: Settings) -> Table:
    """One arm against one rival."""
    ours, rival = settings.titles([rows[0].ours, rows[0].rival])
    num_cells = len(rows[0].difference.values)
    worlds = _count(len(rows[0].difference.by_world), "world")
    table = _table(f"{ours} minus {rival}, {_count(num_cells, 'cell')} in {worlds}", "measure")
    for heading in ("mean difference", "", "95% by t", "95% over cells", "95% over worlds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        one = ALL_MEASURES[row.measure]
        if not any(row.difference.values):
            table.add_row(one.name, "0", "equal in all")
            continue
        word = "better" if one.better else "higher"
        intervals = (row.difference.t, row.difference.cells, row.difference.worlds)
        table.add_row(
            one.name,
            f"{row.difference.mean:+.{one.digits}f}",
            f"{word} in {row.wins} of {num_cells}",
            *(
                "-" if each is None else escape(f"[{', '.join(f'{end:+.{one.digits}f}' for end in each)}]")
                for each in intervals
            ),
        )
    return table


def _headroom(cells: Sequence[Cell], settings: Settings) -> Table:
    """Each arm's gain over the baseline as a share of the oracle's."""
    baseline, oracle = settings.titles([settings.baseline, settings.oracle])
    table = _table(f"accuracy: gain over {baseline}, as a share of the {oracle}'s", "arm")
    for heading in ("share", "95% over cells", "cells"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in settings.chosen:
        if name in (settings.baseline, settings.oracle):
            continue
        share, count = share_of_headroom(cells, name, settings.baseline, settings.oracle)
        ends = "-" if share.ends is None else escape(f"[{share.ends[0]:.2f}, {share.ends[1]:.2f}]")
        table.add_row(settings.arms[name].title, f"{share.mean:.2f}" if count else "-", ends, str(count))
    return table


def _collapsed(cells: Sequence[Cell], settings: Settings) -> RenderableType:
    """For each arm, which students collapsed and where an alarm was raised."""
    table = _table("collapsed students and alarms: cells", "arm")
    for heading in ("finished", "failed", "collapsed", "dose control", "guard"):
        table.add_column(heading, justify="right")
    table.add_column("collapsed (world/seed)")
    fallen = collapsed(cells, settings.baseline)
    for name in settings.chosen:
        ours = list(finished(cells, name).values())
        names = [f"{cell.world}/{cell.seed}" for cell in fallen if cell.arm == name]
        alarms = [str(sum(who in cell.alarms for cell in ours)) for who in ("dose control", "guard")]
        failed = sum(cell.arm == name and bool(cell.failed) for cell in cells)
        counts = map(str, (len(ours), failed, len(names)))
        table.add_row(settings.arms[name].title, *counts, *alarms, ", ".join(names) or "-")
    limits = collapse_limits(cells, settings.baseline).items()
    shown = ", ".join(f"{limit:.3f} in world {world}" for world, limit in limits) or "unknown"
    baseline = settings.arms[settings.baseline].title
    return Group(table, f"Limit above {baseline}'s reference loss, nats per token: {shown}\n")


def _overdosed(cells: Sequence[Cell], settings: Settings, names: Sequence[str]) -> Table:
    """For each cell of an overdosed arm: was it noticed, and what became of the student?"""
    baseline = settings.arms[settings.baseline].title
    table = _table(f"overdosed alignment: was it noticed? The student minus {baseline}'s", "world", "seed", "arm")
    for heading in ("selected step", "accuracy", "reference loss", "test loss"):
        table.add_column(heading, justify="right")
    table.add_column("collapsed")
    table.add_column("what was said", ratio=1)
    fallen = {(cell.world, cell.seed, cell.arm) for cell in collapsed(cells, settings.baseline)}
    references = finished(cells, settings.baseline)
    for cell in cells:
        if cell.arm not in names:
            continue
        said = [f"{who}: {'; '.join(cell.alarms.get(who, [])) or 'silent'}" for who in ("dose control", "guard")]
        reference = references.get((cell.world, cell.seed))
        numbers = [_mean([cell.measures.get("selected step")], 0)]
        for name in ("accuracy", "reference loss", "test loss"):
            known = reference is not None and name in cell.measures
            numbers.append(f"{cell.measures[name] - reference.measures[name]:+.3f}" if known and reference else "-")
        table.add_row(
            *(str(cell.world), str(cell.seed), settings.arms[cell.arm].title, *numbers),
            "-" if cell.failed else "yes" if (cell.world, cell.seed, cell.arm) in fallen else "no",
            escape(f"failed: {cell.failed}" if cell.failed else "\n".join(said)),
        )
    return table


def _each(cells: Sequence[Cell], settings: Settings) -> Table:
    table = _table("cell by cell", "world", "seed", "arm")
    for name in IN_EACH_CELL:
        table.add_column(name, justify="right")
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        values = [_mean([cell.measures.get(name)], ALL_MEASURES[name].digits) for name in IN_EACH_CELL]
        end = following is None or (following.world, following.seed) != (cell.world, cell.seed)
        title = settings.arms[cell.arm].title + " FAILED" * bool(cell.failed)
        table.add_row(str(cell.world), str(cell.seed), title, *values, end_section=end)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.{digits}f}" if known and len(known) == len(values) else "-"
