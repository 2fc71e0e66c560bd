"""`compare` on run directories that are written by hand: groups, names, means, differences, formats and mistakes."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from montessori_pl.__main__ import main
from montessori_pl.report.comparison import RunComparison, compare
from montessori_pl.report.groups import Group, form_groups
from montessori_pl.report.runs import read_run
from montessori_pl.run_directory.run_directory import RunDirectory
from montessori_pl.stats.means import MeanInterval

BREADTH = {"token_entropy": 4.25, "first_word_entropy": 2.0, "distinct_rate": 1.0, "mean_max_rouge_l": 0.625}
SENTENCE = "after 512 completions the writing had moved beyond the limits"
MEANS = "Means over seeds; ± is half of the 95% interval by Student's t, which there is from 3 seeds on."
DIFFERENCES = "Differences are over the seeds that both have (pairs); unpaired: of means, with Welch's interval."

Compare = Callable[..., str]


class HandMade:
    """Writes the directory of one run, stage by stage, as the program does."""

    def __init__(self, path: str, seed: int, **settings: Any) -> None:
        self.run_directory = RunDirectory(Path(path))
        self.settings = {"seed_everything": seed, **settings}
        self.run_directory.root.mkdir(parents=True)

    def begin(self, key: str, **inputs: str) -> None:
        self.run_directory.begin(key, self.settings, inputs)

    def add(self, key: str, kind: str, metrics: dict[str, Any], seconds: float = 1.5, **inputs: str) -> None:
        self.begin(key, **inputs)
        path = self.run_directory.directory(key) / "metrics.json"
        path.write_text(json.dumps({"kind": kind, **metrics}))
        self.run_directory.add_seconds(key, seconds)
        self.run_directory.finish(key, [path])


def write_run(
    path: str, seed: int, accuracy: float, iteration: int = 1, warnings: tuple[str, ...] = (), **settings: Any
) -> Path:
    """A finished run of four stages, whose student is evaluated beside its base model."""
    run = HandMade(path, seed, **settings)
    at = f"iteration_{iteration}"
    written = {"accepted": 200, "rejected": {}, "diversity": BREADTH, "warnings": list(warnings)}
    run.add(f"{at}/training_data", "examples", written, teacher="base")
    scored = {"count": 8, "mean": 0.25, "standard_error": 0.1, "positive_rate": 0.75}
    run.add(f"{at}/influence_after", "scores", scored, examples=f"{at}/training_data 01")
    run.add(f"{at}/trained", "student", {"steps": 3, "loss": 1.0}, examples=f"{at}/training_data 01")
    students = {"base": {"accuracy": 0.125}, "trained": {"accuracy": accuracy, "reference_loss": 1 - accuracy}}
    inputs = {"students.base": "base", "students.trained": f"{at}/trained 02"}
    run.add(f"{at}/evaluation", "report", {"students": students}, **inputs)
    return Path(path)


def write_half(path: str, seed: int, **settings: Any) -> Path:
    """A run that was stopped while it trained."""
    run = HandMade(path, seed, **settings)
    run.add("iteration_1/training_data", "examples", {"accepted": 9, "rejected": {}, "diversity": BREADTH})
    run.begin("iteration_1/trained", examples="iteration_1/training_data 01")
    return Path(path)


def grouped(*paths: Path | str, student: str | None = None) -> list[Group]:
    """Groups of these paths, of which `NAME=DIR` names the group."""
    named = [str(path).rpartition("=") for path in paths]
    return form_groups([(name, read_run(Path(path), student)) for name, _, path in named])


def compared(*paths: Path | str, baseline: str = "") -> RunComparison:
    return compare(grouped(*paths), baseline)


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Compare:
    """Run `compare` and return what it prints."""

    def run(*arguments: str) -> str:
        main(["compare", *arguments])
        printed = capsys.readouterr()
        assert not printed.err
        return printed.out

    return run


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Compare:
    """Run `compare` and return the sentence with which it ends."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_info:
            main(["compare", *arguments])
        printed = capsys.readouterr()
        assert exit_info.value.code == 2
        assert not printed.out
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1, "one sentence on one line"
        return printed.err.removeprefix("error: ").rstrip("\n")

    return run


@pytest.fixture
def runs() -> list[str]:
    """Two runs of one recipe, two of another, and one that has not finished."""
    write_run("montessori-seed_0", 0, 0.75, lr=0.1, warnings=(SENTENCE,))
    write_run("montessori-seed_1", 1, 0.5, lr=0.1)
    write_run("self_instruct-seed_0", 0, 0.5, lr=0.2)
    write_run("self_instruct-seed_1", 1, 0.5, lr=0.2)
    write_half("random-seed_0", 0, lr=0.3)
    return sorted(path.name for path in Path.cwd().iterdir())


class TestGroups:
    """Which runs belong together, and how they are called."""

    def names(self, *paths: Path | str) -> dict[str, list[int]]:
        return {group.name: [run.seed for run in group.runs] for group in grouped(*paths)}

    def test_settings_apart_from_the_seed(self, runs: list[str]) -> None:
        assert self.names(*runs) == {"montessori": [0, 1], "random-seed_0": [0], "self_instruct": [0, 1]}

    def test_another_iteration_is_another_group(self) -> None:
        one, two = write_run("one", 0, 0.5), write_run("two", 1, 0.5)
        again = HandMade("three", 2)
        for key in ("training_data", "influence_after", "trained", "evaluation", "more"):
            again.begin(f"iteration_1/{key}")
        assert [len(group.runs) for group in grouped(one, two, again.run_directory.root)] == [2, 1]

    @pytest.mark.parametrize(
        ("paths", "name"),
        [
            (["montessori-seed0", "montessori-seed1"], "montessori"),
            (["montessori_42", "montessori_43"], "montessori"),
            (["montessori.seed 1", "montessori.seed 2"], "montessori"),
            (["seed_0/montessori", "seed_1/montessori"], "montessori"),
            (["montessori/seed_0", "montessori/seed_10"], "montessori"),
            (["montessori/0", "montessori/1"], "montessori"),
            (["seed1-montessori", "seed2-montessori"], "montessori"),
            (["montessori/seed_0"], "montessori"),
            (["iter1"], "iter1"),
        ],
    )
    def test_name_is_what_the_directories_have_in_common(self, paths: list[str], name: str) -> None:
        for seed, path in enumerate(paths):
            write_run(path, seed, 0.5)
        assert list(self.names(*paths)) == [name]

    def test_parents_tell_groups_of_one_name_apart(self) -> None:
        for world in (0, 1):
            for seed in (0, 1):
                write_run(f"world-{world}/seed_{seed}/montessori", seed, 0.5, data=f"classroom@{world}/seed_tasks")
        write_run("random", 0, 0.5, lr=0.1)
        assert self.names(*Path().glob("world-*/*/*"), "random").keys() == {
            "world-0/montessori",
            "world-1/montessori",
            "random",
        }

    def test_where_parents_do_not_help_the_path_is_the_name(self) -> None:
        write_run("seed_1", 1, 0.5, lr=0.1)
        write_run("seed_2", 2, 0.5, lr=0.2)
        assert self.names("seed_1", "seed_2") == {"seed_1": [1], "seed_2": [2]}

    def test_names_of_the_user(self, runs: list[str]) -> None:
        """They put together whatever the user likes; no other group is called so."""
        found = self.names(f"mine={runs[0]}", f"mine={runs[4]}", f"{runs[3]}={runs[1]}", runs[3])
        parent = Path.cwd().name
        assert found == {"mine": [0, 1], "self_instruct-seed_0": [1], f"{parent}/self_instruct-seed_0": [0]}

    def test_directory_whose_name_looks_like_a_name(self, said: Compare) -> None:
        write_run("lr=1", 0, 0.5)
        assert "\nlr=1,1," in said("lr=1", "--format", "csv")
        assert "\nmine,1," in said("mine=lr=1", "--format", "csv")


class TestNumbers:
    """What is averaged, and what is subtracted."""

    def test_means_over_seeds(self) -> None:
        paths = [write_run(f"run-{seed}", seed, accuracy) for seed, accuracy in enumerate((0.5, 0.6, 0.7))]
        comparison = compared(*paths)
        found = comparison.means["run"]
        assert found["accuracy"].mean == pytest.approx(0.6)
        assert found["accuracy"].half_width == pytest.approx(0.248414, abs=1e-6)
        assert found["reference_loss"].mean == pytest.approx(0.4)
        assert found["data_accepted"] == MeanInterval(200, 200, 200)
        assert found["data_mean_max_rouge_l"] == MeanInterval(0.625, 0.625, 0.625)
        assert found["influence"] == MeanInterval(0.25, 0.25, 0.25)
        assert found["positive_rate"] == MeanInterval(0.75, 0.75, 0.75)
        assert found["seconds"] == MeanInterval(6, 6, 6), "four stages of 1.5 s"
        assert not found.keys() & {"test_loss", "win_rate", "generated_tokens"}
        assert comparison.differences == {}

    def test_win_rate_and_tokens_where_somebody_reports_them(self) -> None:
        run = HandMade("run", 0)
        run.add("iteration_1/data", "examples", {"accepted": 1, "rejected": {}, "generated_tokens": 70})
        run.add("iteration_1/trained", "student", {"generated_tokens": 30})
        run.add("iteration_1/evaluation", "report", {"students": {"trained": {"win_rate": 0.625}}})
        found = compared("run").means["run"]
        assert (found["generated_tokens"].mean, found["win_rate"].mean) == (100, 0.625)

    def test_differences_are_paired_by_seed(self) -> None:
        """.05, .1 and 0: mean .05, standard deviation .05, so +- 4.30265 * .05 / sqrt(3). Seed 9 has no partner."""
        ours = [write_run(f"ours-{seed}", seed, one, lr=0.1) for seed, one in ((2, 0.7), (0, 0.5), (1, 0.6), (9, 0.9))]
        theirs = [write_run(f"base-{seed}", seed, one, lr=0.2) for seed, one in enumerate((0.45, 0.5, 0.7))]
        found = compared(*ours, *theirs, baseline="base").differences
        assert list(found) == ["ours"]
        assert found["ours"].pairs == 3
        assert found["ours"].measures["accuracy"].mean == pytest.approx(0.05)
        assert found["ours"].measures["accuracy"].half_width == pytest.approx(0.124207, abs=1e-6)

    def test_differences_without_a_common_seed_are_unpaired(self, said: Compare) -> None:
        ours = [write_run(f"ours-{seed}", seed, one, lr=0.1) for seed, one in enumerate((0.5, 0.6, 0.7))]
        theirs = [write_run(f"base-{seed + 3}", seed + 3, one, lr=0.2) for seed, one in enumerate((0.45, 0.5, 0.7))]
        found = compared(*ours, *theirs, baseline="base").differences["ours"]
        assert found.pairs == 0
        assert found.measures["accuracy"].half_width == pytest.approx(0.273807, abs=1e-6)
        printed = said(*map(str, (*ours, *theirs)), "--baseline", "base", "--format", "markdown")
        assert "| ours | unpaired | +0.050 ± 0.274 |" in printed

    def test_influence_of_stages_of_other_names_is_not_subtracted(self) -> None:
        """One scores what the teacher wrote before it was aligned, another what it wrote after."""
        write_run("ours", 0, 0.5)
        write_run("rival", 0, 0.5, lr=0.1)
        scored = {"count": 8, "mean": 0.25, "standard_error": 0.1, "positive_rate": 0.75}
        run = HandMade("other", 0)
        run.add("iteration_1/influence", "scores", scored)
        run.add("iteration_1/evaluation", "report", {"students": {"trained": {"accuracy": 0.5}}})
        found = compared("ours", "rival", "other", baseline="ours").differences
        assert "influence" in found["rival"].measures
        assert found["other"].measures.keys() == {"accuracy", "seconds"}

    def test_student(self, runs: list[str]) -> None:
        """The evaluation's last, or who is asked for; a base model has no training data."""
        assert {run.student for group in grouped(*runs) for run in group.finished} == {"trained"}
        groups = grouped(*runs, student="base")
        assert groups[0].values("accuracy") == {0: 0.125, 1: 0.125}
        assert groups[0].values("data_accepted") == {}
        assert groups[0].values("influence") == {0: 0.25, 1: 0.25}

    def test_measure_that_some_runs_of_a_group_lack_is_not_averaged(self, runs: list[str]) -> None:
        run = HandMade("other", 7)
        run.add("iteration_1/evaluation", "report", {"students": {"trained": {"accuracy": 0.25}}})
        found = compared(f"mine={runs[0]}", "mine=other").means["mine"]
        assert found["accuracy"] == MeanInterval(0.5)
        assert found.keys() == {"accuracy", "seconds"}


class TestUnfinished:
    """Runs without the evaluation of their last iteration are shown with how far they have come."""

    def test_in_a_group_of_its_own(self, runs: list[str], said: Compare) -> None:
        rows = list(csv.DictReader(io.StringIO(said(*runs, "--format", "csv"))))
        assert [row["group"] for row in rows] == ["montessori", "random-seed_0", "self_instruct"]
        assert {name: value for name, value in rows[1].items() if value} == {
            "group": "random-seed_0",
            "seeds": "0",
            "unfinished": "1",
            "last_stage": "iteration_1/training_data",
            "warnings": "0",
        }
        assert rows[0]["last_stage"] == ""

    def test_in_a_group_with_others(self, runs: list[str], said: Compare) -> None:
        write_half("late", 5)
        printed = said(*(f"mine={name}" for name in (runs[0], runs[1], "late")), "--format", "markdown")
        assert "| mine | 2 of 3 | iteration_1/training_data | trained | 0.625 |" in printed

    def test_second_iteration_on_its_way(self, runs: list[str]) -> None:
        """The first one's evaluation is not the last word on it."""
        run = read_run(Path(runs[0]), None)
        assert run.students
        RunDirectory(run.root).begin("iteration_2/training_data", {"seed_everything": 0}, {})
        again = read_run(Path(runs[0]), None)
        assert (again.students, again.measures, again.last_stage) == ((), {}, "iteration_1/evaluation")

    def test_run_of_fewer_iterations_does_not_count(self, runs: list[str]) -> None:
        write_run("two", 5, 0.25, iteration=2)
        (group,) = grouped(f"mine={runs[0]}", "mine=two")
        assert group.values("accuracy") == {5: 0.25}
        assert [run.root.name for run in group.unfinished] == [runs[0]]


class TestFormats:
    """What is printed and written, letter by letter."""

    def test_csv(self, runs: list[str], said: Compare) -> None:
        finished = [name for name in runs if "random" not in name]
        header = (
            "group,seeds,student,influence_stage,accuracy,reference_loss,data_accepted,data_token_entropy,"
            "data_first_word_entropy,data_distinct_rate,data_mean_max_rouge_l,influence,positive_rate,seconds,warnings"
        )
        assert said(*finished, "--format", "csv") == (
            f"{header}\n"
            "montessori,2,trained,influence_after,0.625,0.375,200.0,4.25,2.0,1.0,0.625,0.25,0.75,6.0,1\n"
            "self_instruct,2,trained,influence_after,0.5,0.5,200.0,4.25,2.0,1.0,0.625,0.25,0.75,6.0,0\n"
        )

    def test_csv_with_intervals_and_differences(self, said: Compare) -> None:
        paths = [str(write_run(f"ours-{seed}", seed, one, lr=0.1)) for seed, one in enumerate((0.25, 0.5, 0.75))]
        paths.append(str(write_run("base-1", 1, 0.125, lr=0.2)))
        ours, base = csv.DictReader(io.StringIO(said(*paths, "--format", "csv", "--baseline", "base-1")))
        half = 4.302652729911275 * 0.25 / 3**0.5
        assert float(ours["accuracy_low"]) == pytest.approx(0.5 - half)
        assert float(ours["accuracy_high"]) == pytest.approx(0.5 + half)
        assert (ours["baseline"], ours["pairs"], ours["accuracy_difference"]) == ("base-1", "1", "0.375")
        assert not any(value for name, value in base.items() if name.endswith(("low", "high", "difference", "pairs")))
        assert "accuracy_difference_low" not in base, "nobody has it"

    def test_hostile_names_are_read_and_not_obeyed(self, said: Compare) -> None:
        """HTML, links and formulas in the name of a directory, in a label and in a warning of a run."""
        warning = "found '<script>f()</script>' and \x1b[31mred"
        runs = [
            str(write_run("<img src=x>", 1, 0.5, warnings=(warning,), rate=1)),
            str(write_run("=HYPERLINK(A1)", 1, 0.5, rate=2)),
            f"@b={write_run('c', 1, 0.5, rate=3)}",
        ]
        markdown = said(*runs, "--format", "markdown", "--baseline", "@b")
        assert "<" not in markdown
        assert "| &lt;img src=x> |" in markdown
        assert "&lt;script>" in markdown
        rows = list(csv.DictReader(io.StringIO(said(*runs, "--format", "csv", "--baseline", "@b"))))
        assert [row["group"] for row in rows] == ["<img src=x>", "'=HYPERLINK(A1)", "'@b"]
        assert {row["baseline"] for row in rows} == {"'@b", ""}
        assert float(rows[0]["accuracy_difference"]) == 0
        for form in ("text", "markdown", "csv"):
            assert "\x1b" not in said(*runs, "--format", form)

    def test_markdown(self, runs: list[str], said: Compare) -> None:
        printed = said(*runs, "--format", "markdown", "--baseline", "self_instruct")
        half = "iteration_1/training_data"
        assert printed.splitlines() == [
            "| group | seeds | last finished stage | student | accuracy | reference loss | examples | entropy of words "
            "| of first words | distinct share | mean max ROUGE-L | scored by | mean score | positive share | seconds "
            "| warnings |",
            "| --- |" + " ---: |" * 15,
            "| montessori | 2 | - | trained | 0.625 | 0.375 | 200 | 4.25 | 2.00 | 1.00 | 0.62 | influence_after | 0.25 "
            "| 0.75 | 6 | 1 |",
            f"| random-seed_0 | 0 of 1 | {half} | - | - | - | - | - | - | - | - | - | - | - | - | 0 |",
            "| self_instruct | 2 | - | trained | 0.500 | 0.500 | 200 | 4.25 | 2.00 | 1.00 | 0.62 | influence_after "
            "| 0.25 | 0.75 | 6 | 0 |",
            "",
            MEANS,
            "",
            "Minus self_instruct:",
            "",
            "| group | pairs | accuracy | reference loss | examples | entropy of words | of first words "
            "| distinct share | mean max ROUGE-L | mean score | positive share | seconds |",
            "| --- |" + " ---: |" * 11,
            "| montessori | 2 | +0.125 | -0.125 | +0 | +0.00 | +0.00 | +0.00 | +0.00 | +0 | +0.00 | +0 |",
            "",
            DIFFERENCES,
            "",
            "Warnings:",
            "",
            f"- montessori, seed 0: iteration_1/training_data: {SENTENCE}",
        ]

    def test_text(self, said: Compare) -> None:
        """Tables that fit 80 columns, with intervals below their means; then the differences, then the warnings."""
        paths = [str(write_run(f"mine-{seed}", seed, one, lr=0.1)) for seed, one in enumerate((0.5, 0.6, 0.7))]
        paths.append(str(write_run("[red]", 1, 0.5, lr=0.2, warnings=(SENTENCE,))))
        lines = said(*paths, "--baseline", "[red]").splitlines()
        assert max(len(line) for line in lines if line.startswith(("│", "┃"))) <= 80
        cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
        assert ["mine", "3", "trained", "0.600", "0.400"] in cells
        assert ["", "", "", "± 0.248", "± 0.248"] in cells
        assert ["[red]", "1", "trained", "0.500", "0.500"] in cells
        assert ["mine", "1", "+0.100", "-0.100"] in cells
        titles = [line for line, below in pairwise(lines) if below.startswith("┏")]
        sections = ["student", "its training data", "score", "cost"]
        assert titles == [*sections, *(f"{section} minus [red]" for section in sections)]
        assert lines[-1] == f"warning: [red], seed 1: iteration_1/training_data: {SENTENCE}"

    def test_output(self, runs: list[str], said: Compare) -> None:
        """The same as what is printed; nothing else is left behind."""
        before = set(Path.cwd().iterdir())
        for form in ("csv", "markdown", "text"):
            assert said(*runs, "--format", form, "--output", f"table.{form}") == ""
            assert Path(f"table.{form}").read_text(encoding="utf-8") == said(*runs, "--format", form)
        assert {path.name for path in set(Path.cwd().iterdir()) - before} == {
            "table.csv",
            "table.markdown",
            "table.text",
        }


class TestMistakes:
    """What a user can get wrong, each with the sentence that says so."""

    def test_missing_directory(self, runs: list[str], mistake: Compare) -> None:
        assert mistake("checkpoints/iter9") == (
            f"there is no directory checkpoints/iter9; {Path.cwd()} holds {', '.join(f'{name}/' for name in runs)}; "
            "correct the path"
        )

    def test_directory_that_is_no_run(self, mistake: Compare) -> None:
        write_run("study/seed_0", 0, 0.5)
        assert mistake("study") == (
            "study is no run directory, for it holds no manifest.json; study holds seed_0/; give the directory that "
            "`fit` was given with --run"
        )

    def test_damaged_manifest_and_metrics(self, runs: list[str], mistake: Compare) -> None:
        Path(runs[0], "iteration_1/evaluation/metrics.json").write_text("{")
        said = mistake(*runs)
        assert said.startswith(
            f"{runs[0]}/iteration_1/evaluation/metrics.json is not what stage iteration_1/evaluation "
        )
        Path(runs[0], "manifest.json").write_text("[]")
        assert mistake(*runs).startswith(f"{runs[0]}/manifest.json is not a manifest of this program (")

    def test_run_that_has_not_begun(self, mistake: Compare) -> None:
        Path("new").mkdir()
        Path("new/manifest.json").write_text('{"facts": {}, "stages": {}}')
        assert mistake("new") == "no stage of new has begun; leave it out"

    def test_no_finished_evaluation(self, mistake: Compare) -> None:
        write_half("one", 0)
        HandMade("two", 0).begin("iteration_1/training_data")
        assert mistake("one", "two") == (
            "no run has finished the evaluation of its last iteration, so there is nothing to compare; the stages that "
            "finished last are: one: iteration_1/training_data, two: none"
        )

    def test_unknown_baseline(self, runs: list[str], mistake: Compare) -> None:
        assert mistake(*runs, "--baseline", "self-instruct") == (
            "--baseline names 'self-instruct', which is no group; there are: montessori, random-seed_0, self_instruct"
        )
        assert mistake(*runs, "--baseline", "random-seed_0") == (
            "the baseline 'random-seed_0' has not finished its evaluation; finish it, or choose another"
        )

    def test_unknown_student(self, runs: list[str], mistake: Compare) -> None:
        assert mistake(*runs, "--student", "warmup") == (
            "--student names 'warmup', which no run has evaluated; there are: base, trained"
        )

    def test_same_seed_twice(self, runs: list[str], mistake: Compare) -> None:
        write_run("again", 0, 0.25, lr=0.1)
        assert mistake(f"mine={runs[0]}", "mine=again") == (
            f"{runs[0]} and again, both of the group 'mine', have the same seed 0; leave one out, or give it a name of "
            "its own: NAME=again"
        )
        assert "have the same seed 1" in mistake(runs[1], runs[1])

    def test_options(self, runs: list[str], mistake: Compare) -> None:
        ending = "; `python -m montessori_pl compare --help` lists what exists"
        assert mistake() == f"the following arguments are required: RUN{ending}"
        assert mistake(*runs, "--basline", "x").endswith(ending)
        assert mistake(*runs, "--format", "html").startswith("argument --format: invalid choice: 'html'")
        assert mistake(*runs, "--output", "tables/all.csv") == (
            "there is no directory tables to write all.csv into; make it first"
        )


def test_command_is_quick(runs: list[str]) -> None:
    """It imports neither Lightning nor models, nor anything of their size."""
    program = (
        "import sys; from montessori_pl.__main__ import main; main(sys.argv[1:])\n"
        "big = {'torch', 'lightning', 'transformers', 'jsonargparse', 'numpy', 'datasets', 'wandb'}\n"
        "print(sorted(big & sys.modules.keys()))"
    )
    arguments = ["compare", *runs, "--format", "csv"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
