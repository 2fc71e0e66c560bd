"""Run directories that are written by hand, record by record, for the page of `report`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from montessori_pl.data.records import Example, PreferencePair, Record, Rejection, Score
from montessori_pl.run_directory.run_directory import RunDirectory

DIVERSITY = {"token_entropy": 4.0, "first_word_entropy": 2.0, "distinct_rate": 1.0, "mean_max_rouge_l": 0.5}
NARROWER = {**DIVERSITY, "token_entropy": 3.5}
PLAIN = "write a b again"
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'></script><!-- "
    "\u2028 \u202eright to left\u202c \u0633\u0644\u0627\u0645 \x1b[2J \ud83d =1+1 {{x}} ${x} "
) + "long " * 20_000
RIGHT = {"base": (1, 1, 0, 0, 0, 1, 0, 0), "warmup": (1, 1, 0, 0, 0, 0, 1, 0), "trained": (1, 1, 1, 1, 0, 0, 1, 0)}
"""Whether each student answers each test item right."""


class HandMadeRun:
    """Writes a run, stage by stage, as the program does.

    Args:
        root: the run directory, which is made if it is not there.
        settings: of every stage.
    """

    def __init__(self, root: Path, **settings: Any) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.run_directory = RunDirectory(root)
        self.settings = settings

    def begin(self, key: str, what: str, inputs: Mapping[str, str], **own: Any) -> Path:
        """A stage that has begun; returns its directory."""
        recipe = {f"recipe.{key.partition('/')[2]}": {"class_path": f"montessori_pl.stages.{what}", "init_args": own}}
        self.run_directory.begin(key, {**self.settings, **recipe}, inputs)
        return self.run_directory.directory(key)

    def finish(self, key: str, kind: str, seconds: float = 2.0, **metrics: Any) -> None:
        """The end of a stage: its numbers, and the hashes of all that lies in its directory."""
        directory = self.run_directory.directory(key)
        (directory / "metrics.json").write_text(json.dumps({"kind": kind, **metrics}))
        self.run_directory.add_seconds(key, seconds)
        self.run_directory.finish(key, [path for path in sorted(directory.rglob("*")) if path.is_file()])


def write_run(root: Path, seed: int = 1, text: str = PLAIN, count: int = 8, warning: str = "", **settings: Any) -> Path:
    """A finished run of one iteration, in which all texts of models are alike.

    Args:
        root: the run directory.
        seed: of the run.
        text: what models wrote.
        count: examples of each stage.
        warning: what the last data stage warns of.
        settings: further ones of every stage.
    """
    run = HandMadeRun(root, seed_everything=seed, **settings)
    _write_examples(run, "warmup_data", "base", text, count, DIVERSITY)
    run.begin("iteration_1/warmup", "TrainStudent", {"examples": "iteration_1/warmup_data 0"})
    run.finish("iteration_1/warmup", "student", steps=3, loss=1.0)
    _write_examples(run, "probing_data", "base", text, count, DIVERSITY)
    _write_scores(run, "influence", "probing_data", count, DIVERSITY)
    _write_pairs(run, text, count)
    _write_alignment(run, text)
    guard = {"baseline": "warmup_data", "limits": {"token_entropy": 0.75}}
    aligned = "iteration_1/aligned_teacher 0"
    _write_examples(run, "training_data", aligned, text, count, NARROWER, warning, guard=guard)
    _write_scores(run, "influence_after", "training_data", count, NARROWER)
    run.begin("iteration_1/trained", "TrainStudent", {"examples": "iteration_1/training_data 0"})
    lengths = {"prompts": [4.0, 5.0, 9.0], "responses": [2.0, 2.0, 6.0]}
    run.finish("iteration_1/trained", "student", steps=9, loss=0.5, length_quantiles=lengths)
    _write_evaluation(run, text)
    (root / "config.yaml").write_text("seed_everything: 1\n# " + text[:200].encode("ascii", "ignore").decode() + "\n")
    return root


def examples(stage: str, text: str, count: int) -> list[Example]:
    """Examples of prompts that have two samples each."""
    return [
        Example(
            id=f"{stage}-{number:05d}",
            instruction=f"{text} {number}",
            response=text,
            prompt_id=f"{stage}-prompt-{number // 2}",
            prompt=f"Write a task. {text}",
            completion=f"<instruction>{text} {number}</instruction>",
            teacher="classroom/teacher",
            seed_task_ids=("seed-1", "seed-2"),
        )
        for number in range(count)
    ]


def scores(stage: str, count: int) -> list[Score]:
    """The example of number n has the influence n - 3, with an error of a half."""
    return [
        Score(id=f"{stage}-{number:05d}", value=number - 3.0, standard_error=0.5, method="exact influence, adamw")
        for number in range(count)
    ]


def _write_examples(
    run: HandMadeRun,
    stage: str,
    teacher: str,
    text: str,
    count: int,
    diversity: dict[str, float],
    warning: str = "",
    **own: Any,
) -> None:
    inputs = {"teacher": teacher, **({"guard.baseline": "iteration_1/warmup_data 0"} if "guard" in own else {})}
    directory = run.begin(f"iteration_1/{stage}", "Synthesize", inputs, **own)
    rejected = [
        Rejection(id=f"{stage}-r{number}", reason=reason, detail=f"looks like {text}", text=text)
        for number, reason in enumerate(["near duplicate", "near duplicate", "too short", f"as {text[:40]}"])
    ]
    _append(directory / "examples.jsonl", examples(stage, text, count))
    _append(directory / "rejections.jsonl", rejected)
    numbers = {"accepted": count, "rejected": {}, "diversity": {**diversity, "distinct_2": 0.5}}
    usage = {"prompt_tokens": 1000, "generated_tokens": 500, "cost": 0.25}
    run.finish(f"iteration_1/{stage}", "examples", **numbers, **usage, warnings=[warning] if warning else [])


def _write_scores(run: HandMadeRun, stage: str, source: str, count: int, diversity: dict[str, float]) -> None:
    inputs = {"examples": f"iteration_1/{source} 0", "student": "iteration_1/warmup 0"}
    directory = run.begin(f"iteration_1/{stage}", "ScoreExamples", inputs)
    found = scores(source, count)
    _append(directory / "scores.jsonl", found)
    mean = sum(one.value for one in found) / count
    positive = sum(one.value > 0 for one in found) / count
    numbers = {"count": count, "mean": mean, "standard_error": 0.25, "positive_rate": positive}
    run.finish(f"iteration_1/{stage}", "scores", **numbers, diversity=diversity, reference_loss=1.0)


def _write_pairs(run: HandMadeRun, text: str, count: int) -> None:
    inputs = {"examples": "iteration_1/probing_data 0", "scores.influence": "iteration_1/influence 0"}
    directory = run.begin("iteration_1/preferences", "BuildPreferences", inputs)
    pairs = [
        PreferencePair(
            id=f"pair-{number}",
            prompt=f"Write a task. {text}",
            chosen=f"<instruction>{text} {number + 1}</instruction>",
            rejected=f"<instruction>{text} {number}</instruction>",
            chosen_id=f"probing_data-{number + 1:05d}",
            rejected_id=f"probing_data-{number:05d}",
            margin=1.0 + number,
        )
        for number in range(0, count - 1, 2)
    ]
    _append(directory / "pairs.jsonl", pairs)
    run.finish("iteration_1/preferences", "pairs", pairs=len(pairs), mean_margin=1.0, prompts=4, prompts_with_pairs=4)


def _write_alignment(run: HandMadeRun, text: str) -> None:
    inputs = {"pairs": "iteration_1/preferences 0", "teacher": "base"}
    monitor = {"limits": {"divergence": 0.25, "token_entropy": 0.75}}
    directory = run.begin("iteration_1/aligned_teacher", "AlignTeacher", inputs, monitor=monitor)
    evaluations = [
        {
            "step": step,
            "loss": 2.0 - step / 100,
            "divergence": step / 100,
            "token_entropy": 4.0 - step / 50,
            "beyond": [],
            "samples": [text],
        }
        for step in (0, 10, 20)
    ]
    (directory / "alignment_evaluations.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in evaluations))
    run.finish("iteration_1/aligned_teacher", "teacher", steps=20, monitor={"selected_step": 10})


def _write_evaluation(run: HandMadeRun, text: str) -> None:
    inputs = {f"students.{name}": f"iteration_1/{name} 0" for name in ("warmup", "trained")}
    directory = run.begin("iteration_1/evaluation", "Evaluate", {"students.base": "base", **inputs})
    losses = {"base": 1.5, "warmup": 1.25, "trained": 1.0}
    students = {}
    for name, rights in RIGHT.items():
        answers = directory / name / "ExactMatch" / "answers.jsonl"
        answers.parent.mkdir(parents=True)
        rows = [
            {"id": f"item-{place}", "answer": f"{text} {place}", "right": bool(right), "cut": place == 7}
            for place, right in enumerate(rights)
        ]
        answers.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        students[name] = {
            "accuracy": sum(rights) / len(rights),
            "accuracy_standard_error": 0.1,
            "test_loss": losses[name],
            "test_loss_standard_error": 0.03,
        }
    run.finish("iteration_1/evaluation", "report", students=students)


def _append(path: Path, records: Sequence[Record]) -> None:
    """In ASCII, which holds half a surrogate as well: other programs write such lines."""
    with open(path, "a") as file:
        file.writelines(f"{json.dumps(dataclasses.asdict(one))}\n" for one in records)
