"""Rows that a reader looks through: pairs, the best and the worst examples, rejections, test items.

A page holds a bounded number of rows and of bytes. Each list says how many it shows of how many, and texts say how much
of them is left out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from montessori_pl.data.records import Example, Rejection, Score, json_text
from montessori_pl.data.text import printable
from montessori_pl.report.page.run_data import RunData, StageData

MAX_PAIRS, MAX_ITEMS, NUM_BEST = 200, 400, 20
"""Rows of a stage that are shown: pairs, test items, and examples at each end of the scores."""
SAMPLES_OF_REASON = 8
"""Rejections that are shown for each reason of a stage."""
MAX_REASONS = 40
"""Reasons of a stage of which samples are shown."""
LONGEST = 3000
"""Characters of a text that are shown."""

Row = dict[str, Any]


@dataclass
class Budget:
    """Bytes that the rows of a page may take."""

    left: int

    def take(self, rows: Sequence[Row], part: float) -> list[Row]:
        """The first rows that fit into a part of what is left; the last ones are dropped."""
        room, kept = int(self.left * part), []
        for row in rows:
            size = len(embedded(row).encode())
            if size > room:
                break
            room, self.left = room - size, self.left - size
            kept.append(row)
        return kept


def browsers(run: RunData, questions: Mapping[str, tuple[str, str]], room: int) -> Row:
    """The lists of a run: `items`, `pairs`, `scored`, `samples`, `rejections`.

    Args:
        run: what was read.
        questions: for each item of the test set what is asked and what is expected, where they are known.
        room: bytes that the lists may take.
    """
    budget = Budget(room)
    return {
        "items": _items(run, questions, budget),
        "pairs": [_pairs(run, stage, budget) for stage in run.stages.values() if stage.pairs],
        "scored": [_ends(run, stage, budget) for stage in run.scored()],
        "samples": [_samples(stage, budget) for stage in run.stages.values() if stage.evaluations],
        "rejections": [_rejections(stage, budget) for stage in run.stages.values() if stage.rejections],
    }


def embedded(value: Any) -> str:
    """JSON that may stand within a `<script>`: nothing in it ends the element or begins a comment."""
    return json_text(value, ensure_ascii=False).replace("<", "\\u003c")


def short(text: str) -> str:
    """The beginning of a text, with control characters spelled out, and how much of it is left out."""
    if len(text) <= LONGEST:
        return printable(text)
    return f"{printable(text[:LONGEST])} … ({len(text) - LONGEST:,} more characters)"


def _pairs(run: RunData, stage: StageData, budget: Budget) -> Row:
    scores, examples = run.scores_of(stage), run.examples_of(stage)
    ordered = sorted(stage.pairs, key=lambda pair: -pair.margin)
    rows = []
    for pair in _spread(ordered, MAX_PAIRS):
        sides = {}
        for side in ("chosen", "rejected"):
            id_ = getattr(pair, f"{side}_id")
            example = examples.get(id_)
            sides[side] = {
                "completion": short(getattr(pair, side)),
                "response": short(example.response) if example is not None else "",
                "finished": getattr(pair, f"{side}_finished"),
                "scores": {key: _score(one.get(id_)) for key, one in scores.items()},
            }
        shots = examples[pair.chosen_id].seed_task_ids if pair.chosen_id in examples else ()
        rows.append(
            {
                "id": printable(pair.id),
                "prompt": short(pair.prompt),
                "shots": [printable(shot) for shot in shots],
                "margin": pair.margin,
                "weight": pair.weight,
                **sides,
            }
        )
    return _listed(stage, budget.take(_halves(rows), 0.3), len(stage.pairs), "spread evenly over all margins")


def _ends(run: RunData, stage: StageData, budget: Budget) -> Row:
    """The best and the worst examples by a stage's scores."""
    examples = run.examples_of(stage)
    ordered = sorted((score for score in stage.scores if score.id in examples), key=lambda score: -score.value)
    best = ordered[: min(NUM_BEST, -(-len(ordered) // 2))]
    worst = ordered[::-1][: min(NUM_BEST, len(ordered) // 2)]
    rows = [
        {
            "best": _example(examples[good.id], good),
            "worst": _example(examples[bad.id], bad) if bad is not None else None,
        }
        for good, bad in zip(best, [*worst, *[None] * (len(best) - len(worst))], strict=True)
    ]
    return _listed(stage, budget.take(rows, 0.2), len(ordered), "the best and the worst")


def _samples(stage: StageData, budget: Budget) -> Row:
    """What the teacher wrote at each evaluation of the alignment monitor."""
    rows = [
        {"step": one["step"], "samples": [short(str(sample)) for sample in one.get("samples") or []]}
        for one in stage.evaluations
    ]
    return _listed(stage, budget.take(rows, 0.1), len(rows), "the first ones")


def _rejections(stage: StageData, budget: Budget) -> Row:
    by_reason: dict[str, list[Rejection]] = {}
    for one in stage.rejections:
        by_reason.setdefault(one.reason, []).append(one)
    counts = Counter({reason: len(some) for reason, some in by_reason.items()}).most_common()
    # One sample of each reason, then a second one: where there is no room, no reason goes without.
    samples = [_spread(by_reason[reason], SAMPLES_OF_REASON) for reason, _ in counts[:MAX_REASONS]]
    rows = [
        {"reason": short(one.reason), "detail": short(one.detail), "text": short(one.text)}
        for place in range(SAMPLES_OF_REASON)
        for some in samples
        for one in some[place : place + 1]
    ]
    how = f"up to {SAMPLES_OF_REASON} of each reason"
    listed = _listed(stage, budget.take(rows, 0.3), len(stage.rejections), how)
    return {**listed, "reasons": [[short(reason), count] for reason, count in counts[:MAX_REASONS]]}


def _items(run: RunData, questions: Mapping[str, tuple[str, str]], budget: Budget) -> Row:
    """Each test item over all students; those whose answer got worse come first."""
    columns = _columns(run)
    found: dict[str, Row] = {}
    for name, answers in columns.items():
        for row in answers:
            id_ = str(row["id"])
            item = found.setdefault(id_, {"id": printable(id_), "answers": {}})
            text = row["answer"]
            item["answers"][name] = [None if text is None else short(str(text)), bool(row["right"]), bool(row["cut"])]
    for id_, item in found.items():
        if id_ in questions:
            item["question"], item["expected"] = map(short, questions[id_])
    names = [*columns]
    ordered = sorted(found.values(), key=lambda item: _changed(item, names), reverse=True)
    rows = budget.take(ordered[:MAX_ITEMS], 0.4)
    worse = sum(_changed(item, names) == WORSE for item in ordered)
    return {
        "columns": names,
        "rows": rows,
        "total": len(found),
        "how": f"the {worse:,} that got worse first, then those that got better, then the others",
    }


WORSE, BETTER, SAME = 2, 1, 0


def _changed(item: Row, names: Sequence[str]) -> int:
    """Whether the last student answers an item worse than some earlier one, or better than some."""
    rights = [item["answers"][name][1] for name in names if name in item["answers"]]
    if len(rights) < 2 or len(set(rights)) == 1:
        return SAME
    return BETTER if rights[-1] else WORSE


def _columns(run: RunData) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The answers of each student, in the order of evaluation; one that is evaluated again has no second column."""
    columns: dict[str, Sequence[Mapping[str, Any]]] = {}
    for stage in run.stages.values():
        names = [*stage.students] or [*stage.answers]
        for student in names:
            answers = stage.answers.get(student)
            if answers and answers not in columns.values():
                name = printable(student)
                columns[name if name not in columns else f"{name} (iteration {stage.iteration})"] = answers
    return columns


def _listed(stage: StageData, rows: list[Row], total: int, how: str) -> Row:
    return {"stage": printable(stage.key), "rows": rows, "total": total, "how": how}


def _example(example: Example, score: Score) -> Row:
    return {
        "id": printable(example.id),
        "instruction": short(example.instruction),
        "response": short(example.response),
        "teacher": printable(example.teacher),
        "score": _score(score),
    }


def _score(score: Score | None) -> list[float | None] | None:
    """A value and its standard error."""
    return [score.value, score.standard_error] if score is not None else None


def _spread(values: Sequence[Any], count: int) -> list[Any]:
    """So many values, spread evenly, both ends among them."""
    if len(values) <= count:
        return [*values]
    return [values[place * (len(values) - 1) // (count - 1)] for place in range(count)]


def _halves(rows: list[Row]) -> list[Row]:
    """Rows in an order in which each beginning is spread evenly: where there is no room for all, no end is lost."""
    order: list[Row] = []
    step = 1
    while step * 2 < len(rows):
        step *= 2
    seen: set[int] = set()
    while step:
        for place in range(0, len(rows), step):
            if place not in seen:
                seen.add(place)
                order.append(rows[place])
        step //= 2
    return order
