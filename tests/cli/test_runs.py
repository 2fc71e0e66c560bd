"""Runs to their ends, and on from there: quick ones of a stage or two, and the shipped recipe with small counts."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from recipe_files import Mistake, Recipe, contents

from montessori_pl.cli.fit import main
from montessori_pl.cli.recipe_files import shipped_configs
from montessori_pl.run_directory.run_directory import RunDirectory

PLUGIN = '''
from montessori_pl.stages import Kind, Stage, StageContext, StageError
from pathlib import Path


class Breaks(Stage):
    """Breaks until somebody writes a file."""

    produces = Kind.REPORT
    artifacts = ()

    def __init__(self, until: str, first_iteration_only: bool = False) -> None:
        super().__init__(first_iteration_only)
        self.until = until

    def run(self, context: StageContext) -> dict[str, str]:
        if not Path(self.until).exists():
            raise StageError(f"{context.key} waits for {self.until}")
        return {}
'''


class TestRuns:
    """Runs to their ends."""

    def test_what_a_stage_warns_of_is_said_behind_its_last_line(
        self, recipe: Recipe, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Any stage's: the sentences of its metrics under `warnings`."""
        Path("warning_stages.py").write_text(PLUGIN.replace("return {}", 'return {"warnings": ["less and less"]}'))
        Path("mended").touch()
        stage = {"class_path": "warning_stages.Breaks", "init_args": {"until": "mended"}}
        main(["fit", "--config", recipe(recipe__warns=stage)])
        said = capsys.readouterr().out
        assert re.search(r"recorded: done in .*\n\[2/2\]", said), "who warns of nothing says nothing"
        assert re.search(r"warns: done in .*\n  warning: less and less\n", said)

    @pytest.mark.slow
    def test_rows_that_are_left_out_are_said_first_and_in_the_end(
        self, recipe: Recipe, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Before the first stage, in the summary, and in `summary.json`; also by a dry run, which writes nothing."""
        rows = [{"question": "say a", "answer": "a", "topic": "t"}, {"question": "say b", "answer": ""}]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = recipe(data__reference="rows.jsonl", recipe__recorded__init_args__source="rows.jsonl")
        notes = (
            "data.reference: 1 of 2 rows are left out: 1 empty response; the first is row 2 of rows.jsonl: the "
            "response is blank",
            "data.reference: columns that are not read: topic (1 row)",
        )
        main(["fit", "--config", config, "--dry_run"])
        assert all(note in " ".join(capsys.readouterr().out.split()) for note in notes[:1])
        assert not Path("run").exists()
        for _ in range(2):  # a run that has finished still knows it
            main(["fit", "--config", config])
            summary = json.loads(Path("run/summary.json").read_text())
            assert summary["sources"]["reference"]["left_out"] == {"empty response": 1}
            assert summary["warnings"][:2] == list(notes)
            assert summary["data"]["iteration_1/recorded"]["unread_columns"] == {"topic": 1}
        assert summary["sources"]["test"]["notes"] == []

    def test_the_number_of_threads_holds_for_processes_that_are_started(
        self, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever the environment says, as for this one."""
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        main(["fit", "--config", recipe(num_threads=1), "--dry_run"])
        assert os.environ["OMP_NUM_THREADS"] == "1"

    @pytest.mark.slow
    def test_engine_is_needed_only_for_what_is_left(self, mistake: Mistake, recipe: Recipe) -> None:
        """An engine whose key is gone stops a run that has something to write, and no other."""
        Path("keyed.py").write_text(
            "from pathlib import Path\n"
            "from montessori_pl.generation import TransformersBackend\n"
            "class Keyed(TransformersBackend):\n"
            "    def check_environment(self, source):\n"
            "        if not Path('key').exists():\n"
            "            raise ValueError(f'no key for {source.backbone}')\n"
        )
        written = {
            "class_path": "Synthesize",
            "init_args": {
                "num_prompts": 1,
                "synthesizer": {"class_path": "SelfInstruct", "init_args": {"prompt": "classroom"}},
                "instruction_sampling": {"max_tokens": 40},
                "response_sampling": {"max_tokens": 24},
            },
        }
        config = {"generation": {"class_path": "keyed.Keyed"}, "recipe__written": written}
        assert mistake("--config", recipe(**config)) == "generation: no key for classroom/teacher"
        Path("key").touch()
        main(["fit", "--config", recipe(**config)])
        Path("key").unlink()
        training = {"lr": 1e-3, "batch_size": 4}
        later = {"class_path": "TrainStudent", "init_args": {"examples": "recorded", "training": training}}
        main(["fit", "--config", recipe(**config, recipe__later=later)])
        assert RunDirectory(Path("run")).finished("iteration_1/later")
        again = recipe(**config, recipe__again=written)
        assert mistake("--config", again) == "generation: no key for classroom/teacher"

    @pytest.mark.slow
    def test_without_a_manifest_nothing_is_taken_over(self, recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
        """What another seed has written is moved aside, and what was paid for stays: its requests name their seed."""
        main(["fit", "--config", recipe(seed_everything=42)])
        Path("run/requests").mkdir()
        Path("run/requests/answers.jsonl").touch()
        written = contents(Path("run/iteration_1"))
        Path("run/manifest.json").unlink()
        Path("run/iteration_1/recorded/examples.jsonl").write_text("of seed 42\n")
        capsys.readouterr()
        main(["fit", "--config", recipe(seed_everything=7)])
        said = capsys.readouterr().out
        (aside,) = Path("run/leftovers").iterdir()
        assert f"what the manifest does not know was moved to {aside}; its stages begin anew\n" in said
        assert (aside / "iteration_1/recorded/examples.jsonl").read_text() == "of seed 42\n"
        assert contents(Path("run/iteration_1")) == written
        assert RunDirectory(Path("run")).entries["iteration_1/recorded"].settings["seed_everything"] == 7
        assert Path("run/requests/answers.jsonl").exists()
        main(["fit", "--config", "recipe.yaml"])
        assert len(list(Path("run/leftovers").iterdir())) == 1

    @pytest.mark.slow
    def test_a_finished_stage_is_topped_up(self, mistake: Mistake, recipe: Recipe) -> None:
        """As long as nobody has read it; what there was stays, and what is added comes from later prompts."""
        settings = {
            "num_examples": 6,
            "samples_per_prompt": 2,
            "prompts_per_batch": 2,
            "synthesizer": {"class_path": "SelfInstruct", "init_args": {"prompt": "classroom"}},
            "instruction_sampling": {"max_tokens": 40},
            "response_sampling": {"max_tokens": 24},
            "max_similarity": None,
        }
        path = recipe(recipe__data={"class_path": "Synthesize", "init_args": settings})
        main(["fit", "--config", path])
        examples = Path("run/iteration_1/data/examples.jsonl")
        before = examples.read_text()
        main(["fit", "--config", path, "--recipe.data.num_examples", "9"])
        assert examples.read_text().startswith(before)
        assert len(examples.read_text().splitlines()) == 9
        asked = {"class_path": "GenerateResponses", "init_args": {"instructions": "data", "student": "base"}}
        asked["init_args"]["sampling"] = {"max_tokens": 8}  # type: ignore[index]
        path = recipe(recipe__data={"class_path": "Synthesize", "init_args": settings}, recipe__answers=asked)
        main(["fit", "--config", path, "--recipe.data.num_examples", "9"])
        said = mistake("--config", path, "--recipe.data.num_examples", "12")
        assert said.startswith(
            "stage iteration_1/data of run has finished under other settings "
            "(recipe.data.init_args.num_examples: 9 then, 12 now)"
        )

    def test_plugin_beside_the_recipe_and_a_later_stage_that_changes(self, mistake: Mistake, recipe: Recipe) -> None:
        """The second stage, a class in a file of the working directory, stops the first session.

        What has not begun may then be changed; what has finished is not done again.
        """
        Path("stages_of_mine.py").write_text(PLUGIN)
        stages = {
            "recipe__breaks": {"class_path": "stages_of_mine.Breaks", "init_args": {"until": "mended"}},
            "recipe__later": {"class_path": "RecordedExamples", "init_args": {"source": "classroom/seed_tasks[:8]"}},
        }
        said = mistake("--config", recipe(**stages))
        assert said == "iteration_1/breaks waits for mended"
        assert "StageError" in Path("run/error.log").read_text(), "the traceback is kept"
        before = contents(Path("run/iteration_1/recorded"))
        Path("mended").touch()
        main(["fit", "--config", "recipe.yaml", "--recipe.later.source", "classroom/seed_tasks[:4]"])
        assert contents(Path("run/iteration_1/recorded")) == before
        assert len(Path("run/iteration_1/later/examples.jsonl").read_text().splitlines()) == 4

    @pytest.mark.slow
    def test_recipe_to_its_end_and_on(
        self, tiny_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tiny_recipe()
        arguments, run = ["fit", "--config", str(path)], path.parent / "run"
        main(arguments)
        printed = capsys.readouterr().out
        summary = json.loads((run / "summary.json").read_text())
        assert list(summary["students"]) == ["base", "warmup", "trained"]
        for metrics in summary["students"].values():
            assert {"reference_loss", "test_loss", "accuracy"} <= metrics.keys()
            assert metrics["reference_loss"] > 0
            assert 0 <= metrics["accuracy"] <= 1
            for name in ("reference loss", "test loss", "accuracy"):
                assert name in printed
        assert summary["data"]["iteration_1/warmup_data"]["accepted"] == 24
        assert summary["data"]["iteration_1/training_data"]["accepted"] == 48
        assert summary["data"]["iteration_1/influence_after"]["count"] == 8
        assert summary["data"]["iteration_1/preferences"]["pairs"] >= 1
        # Influence never stands alone: beside it the loss of the student on which it was measured, as its evaluation
        # gives it, and how varied the examples are.
        assert summary["warnings"] == []
        judged = ("influence", "influence_2", "influence_3", "influence_after")
        assert list(summary["influence"]) == [f"iteration_1/{name}" for name in judged]
        for key, numbers in summary["influence"].items():
            same = numbers["reference_loss"] == summary["students"]["warmup"]["reference_loss"]
            assert same is (key.split("_")[-1] not in "23"), "the other two were warmed up apart"
            for name in ("token_entropy", "first_word_entropy", "distinct_rate", "mean_max_rouge_l"):
                assert numbers[name] == summary["data"][key]["diversity"][name] > 0
            assert re.search(
                rf"{key}: done in .* \(mean {numbers['mean']:.3g}, positive {numbers['positive_rate']:.0%} of \d+; "
                rf"entropy of words {numbers['token_entropy']:.2f}, "
                rf"of first words {numbers['first_word_entropy']:.2f}; "
                rf"reference loss {numbers['reference_loss']:.3f}\)",
                printed,
            )
        for student, data in (("warmup", "warmup_data"), ("trained", "training_data")):
            diversity = summary["data"][f"iteration_1/{data}"]["diversity"]
            assert summary["students"][student]["data_token_entropy"] == diversity["token_entropy"]
        assert not [name for name in summary["students"]["base"] if name.startswith("data_")]
        assert summary["training"]["iteration_1/warmup"]["steps"] == 6, "24 examples by 8, twice"
        assert len(summary["stages"]) == 14
        assert all(stage["finished"] and stage["seconds"] >= 0 for stage in summary["stages"].values())
        assert summary["stages"]["iteration_1/training_data"]["seconds"] > 0
        finished = re.findall(r"^\[\d+/14\] .*: done in .*$", printed, re.MULTILINE)
        assert [line.endswith(" left") for line in finished] == [True] * 13 + [False], "of all but the last"
        assert RunDirectory(run).facts["planned_seconds"].keys() == summary["stages"].keys()
        for text in ("[1/14] iteration_1/warmup_data: Synthesize", "24 examples accepted", "summary.json"):
            assert text in printed
        for student, metrics in summary["students"].items():
            assert re.search(rf"│ {student} +│ +{metrics['reference_loss']:.3f} ± ", printed)
        assert yaml.safe_load((run / "config.yaml").read_text())["recipe"].keys() == {
            key.split("/")[1] for key in summary["stages"]
        }

        # A second call does nothing, and says so in seconds.
        before = contents(run / "iteration_1")
        start = time.monotonic()
        main(arguments)
        assert time.monotonic() - start < 10
        printed = capsys.readouterr().out
        assert printed.count("finished before") == 14
        assert "All 14 stages had finished; nothing was left to do." in printed

        # More iterations go on from there; the run directory holds its own recipe file.
        main(["fit", "--config", str(run / "config.yaml"), "--iterations", "2"])
        assert contents(run / "iteration_1") == before
        entries = RunDirectory(run).entries
        second = [key.removeprefix("iteration_2/") for key in entries if key.startswith("iteration_2/")]
        assert second == list(yaml.safe_load((shipped_configs() / "iter1.yaml").read_text())["recipe"])[4:]
        assert _read_by(entries["iteration_2/probing_data"].inputs, "teacher") == "iteration_1/aligned_teacher"
        assert _read_by(entries["iteration_2/influence"].inputs, "student") == "iteration_1/trained"
        assert _read_by(entries["iteration_2/aligned_teacher"].inputs, "teacher") == "iteration_1/aligned_teacher"
        assert _read_by(entries["iteration_2/training_data"].inputs, "teacher") == "iteration_2/aligned_teacher"
        assert entries["iteration_2/trained"].inputs.keys() == {"examples"}, "the student starts from its base"
        assert _read_by(entries["iteration_2/evaluation"].inputs, "students.warmup") == "iteration_1/warmup"
        assert _read_by(entries["iteration_2/evaluation"].inputs, "students.trained") == "iteration_2/trained"


def _read_by(inputs: dict[str, str], setting: str) -> str:
    return inputs[setting].split()[0]
