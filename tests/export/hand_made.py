"""A run directory that is written by hand, and what `export` makes of it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from montessori_pl.__main__ import main
from montessori_pl.data.records import Example, PreferencePair, Record, Rejection, Score
from montessori_pl.run_directory.run_directory import RunDirectory

TEACHER = "org/teacher + aligned"
ADDRESS = "http://127.0.0.1:8000"
WRITING = {
    "num_examples": 4,
    "instruction_sampling": {"temperature": 1.0, "top_p": 0.9},
    "instruction_filter": {"keywords": ["plot", "go to"]},
    "response_filter": {"min_characters": 1, "allow_unfinished": True},
    "max_similarity": 0.7,
    "decontaminate": True,
}
WARNING = "after 512 completions the writing had moved beyond the limits"

Export = Callable[..., str]
"""Runs `export` with these arguments and returns what it says."""


def example(number: int, instruction: str, response: str, **changes: Any) -> Example:
    """The first sample of a prompt."""
    return Example(
        id=f"data-{number}",
        instruction=instruction,
        response=response,
        **{
            "prompt_id": f"prompt-{number}",
            "prompt": "write a task.",
            "completion": f"<instruction>{instruction}</instruction>",
            "teacher": TEACHER,
            "seed_task_ids": ("seed-1", "seed-2"),
            **changes,
        },
    )


EXAMPLES = [
    example(0, "what is a cat?", "an animal."),
    example(1, "Übersetze „Katze“\u2028ins 日本語", "猫 😺\n\nneko", batch=1),
    example(2, "name a letter", " b ", teacher="org/teacher", completion_finished=False),
    example(3, "why?", "because it is so."),
]
RECORDED = [
    Example(id="a", instruction="say hello", response="hello", system="be kind"),
    Example(id="b", instruction="say goodbye", response="goodbye"),
]
SCORES = [Score(id="data-0", value=0.5, standard_error=0.25, terms=(0.25, 0.75)), Score(id="data-1", value=-1.0)]


def pair(number: int, chosen: str, rejected: str, **changes: Any) -> PreferencePair:
    """Two completions of one prompt."""
    return PreferencePair(
        id=f"pair-{number}",
        prompt="write a task.",
        chosen=chosen,
        rejected=rejected,
        chosen_id="data-0",
        rejected_id="data-2",
        margin=0.5 + number,
        weight=0.25,
        **changes,
    )


PAIRS = [
    pair(0, "name a cat.", "no"),
    pair(1, "name a dog and a", "why", chosen_finished=False),
    pair(2, "is it so?", "it is ä"),
    pair(3, "who?", "who is it that", rejected_finished=False),
]


class HandMade:
    """Writes the directory of one run, stage by stage, as the program does."""

    def __init__(self, path: Path | str) -> None:
        self.run_directory = RunDirectory(Path(path))
        self.run_directory.root.mkdir(parents=True)

    def begin(self, key: str, what: str, settings: dict[str, Any], inputs: Sequence[str], **named: str) -> None:
        """Begin a stage; `inputs` are `setting=key` of stages that have finished, others are given by name."""
        read = {
            setting: f"{key} {self.run_directory.digest(key)}" for setting, key in (one.split("=") for one in inputs)
        }
        pinned = {
            "seed_everything": 42,
            f"recipe.{key.split('/')[1]}": {"class_path": f"montessori_pl.stages.{what}", "init_args": settings},
            "generation": {"class_path": "engines.Remote", "init_args": {"address": ADDRESS}},
            "data": {"seed_tasks": "seeds.jsonl"},
        }
        self.run_directory.begin(key, pinned, {**read, **named})

    def add(
        self,
        key: str,
        what: str,
        files: dict[str, Sequence[Record]],
        metrics: dict[str, Any],
        settings: dict[str, Any] | None = None,
        inputs: Sequence[str] = (),
        **named: str,
    ) -> None:
        """Write a stage and finish it; its kind is the first file's name."""
        self.begin(key, what, settings or {}, inputs, **named)
        directory = self.run_directory.directory(key)
        for name, records in files.items():
            text = "".join(record.to_json() + "\n" for record in records)
            (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")
        (directory / "metrics.json").write_text(json.dumps({"kind": next(iter(files)), **metrics}))
        self.run_directory.finish(key, sorted(directory.iterdir()))


def write_run(path: Path | str = "iter1") -> HandMade:
    """A run in its second iteration, whose student is being trained."""
    run = HandMade(path)
    run.add("iteration_1/outside", "RecordedExamples", {"examples": RECORDED}, {"accepted": 2}, {"source": "x.jsonl"})
    rejections = [
        Rejection(id="r", reason="near duplicate", detail="", text=""),
        Rejection(id="s", reason="keyword", detail="plot", text=""),
    ]
    run.add(
        "iteration_1/data",
        "Synthesize",
        {"examples": EXAMPLES, "rejections": rejections},
        {
            "accepted": 4,
            "rejected": {"near duplicate": 1, "keyword": 1},
            "diversity": {"token_entropy": 2.25, "distinct_rate": 1.0},
            "warnings": [WARNING],
        },
        WRITING,
        teacher="base",
    )
    run.add(
        "iteration_1/influence",
        "ScoreExamples",
        {"scores": SCORES},
        {"count": 2, "mean": -0.25, "standard_error": 0.75, "positive_rate": 0.5, "reference_loss": 1.25},
        {"signal": {"class_path": "callbacks.InfluenceProbeCallback", "init_args": {}}},
        ["examples=iteration_1/data"],
        student="base",
    )
    run.add(
        "iteration_1/preferences",
        "BuildPreferences",
        {"pairs": PAIRS},
        {"prompts": 9, "pairs": 4, "prompts_with_pairs": 3, "mean_margin": 2.0},
        {"rule": "signed"},
        ["examples=iteration_1/data", "scores=iteration_1/influence"],
    )
    run.begin("iteration_1/trained", "TrainStudent", {}, ["examples=iteration_1/data"])
    return run


def exported(format: str, *arguments: str, output: str = "out") -> Path:
    main(["export", "iter1", "--format", format, "--output", output, *arguments])
    return Path(output)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def described(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `dataset_info.json` says of the one data set, and the rows of the file that it names."""
    ((_, description),) = json.loads((directory / "dataset_info.json").read_text()).items()
    return description, rows(directory / description["file_name"])
