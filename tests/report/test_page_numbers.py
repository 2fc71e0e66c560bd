"""What the page says of runs that are written by hand: verdicts, figures, lists, and runs that are not whole."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
from hand_made_runs import HOSTILE, HandMadeRun, examples, scores, write_run

from montessori_pl.data.records import append_records
from montessori_pl.report.comparison import compare
from montessori_pl.report.groups import form_groups
from montessori_pl.report.page import browsers
from montessori_pl.report.page.axes import labels, ticks
from montessori_pl.report.page.browsers import LONGEST, Budget, embedded, short
from montessori_pl.report.page.figures import Figure, Plot, Point, Row, Rows, Series
from montessori_pl.report.page.histogram import histograms
from montessori_pl.report.page.page import run_figures, run_part, write_page
from montessori_pl.report.page.run_data import DURING_TRAINING, RunData, read_run_data
from montessori_pl.report.page.tables import cost_table, sentence
from montessori_pl.report.page.teacher_figures import students_by_progress
from montessori_pl.report.page.verdict import Verdict, group_verdicts, run_verdicts
from montessori_pl.report.runs import read_run
from montessori_pl.run_directory.errors import RunDirectoryError
from montessori_pl.run_directory.run_directory import RunDirectory
from montessori_pl.stats.means import MeanInterval


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return read_run_data(write_run(tmp_path_factory.mktemp("runs") / "run"), "run")


def page_on(run: RunData) -> str:
    """The page on one run."""
    return write_page([run_part(run, {})], [run.without_records()], None)


def figure(run: RunData, name: str) -> Figure:
    """The figure of this name."""
    return next(one for some in run_figures(run).values() for one in some if one.name == name)


def plot(run: RunData, name: str) -> Plot:
    one = figure(run, name)
    assert isinstance(one, Plot)
    return one


class TestVerdicts:
    """Students beside the base, groups beside a baseline."""

    def test_accuracy_is_paired_over_items(self, run: RunData) -> None:
        """Of 8 items 3 were won and 1 was lost: differences of mean 1/4 and of variance (4 - 8/16) / 7 = 1/2."""
        accuracy = run_verdicts(run)[0]
        half = 2.36462 * math.sqrt(0.5 / 8)  # Student's t of 7 degrees of freedom
        assert (accuracy.who, accuracy.baseline, accuracy.measure) == ("trained", "base", "accuracy")
        assert accuracy.difference.mean == 0.25
        assert accuracy.difference.ends == pytest.approx((0.25 - half, 0.25 + half), abs=1e-4)
        assert (accuracy.word, accuracy.basis) == ("not told apart", "8 test items, paired")

    def test_losses_have_the_errors_of_both(self, run: RunData) -> None:
        """Lower is better: 1.0 and 1.5, each with an error of .03."""
        loss = run_verdicts(run)[1]
        half = 1.96 * 0.03 * math.sqrt(2)
        assert loss.difference.ends == pytest.approx((-0.5 - half, -0.5 + half))
        assert (loss.measure, loss.word, loss.basis) == ("test_loss", "better", "items, unpaired")

    def test_an_iteration_beside_the_one_before(self, tmp_path: Path) -> None:
        """The second student has 4 of 8 items right, the first one had 5."""
        root = write_run(tmp_path / "run")
        run = HandMadeRun(root, seed_everything=1)
        inputs = {"students.base": "base", "students.trained": "iteration_2/trained 0"}
        run.begin("iteration_2/evaluation", "Evaluate", inputs)
        students = {"base": {"accuracy": 3 / 8}, "trained": {"accuracy": 4 / 8}}
        run.finish("iteration_2/evaluation", "report", students=students)
        verdicts = run_verdicts(read_run_data(root, "run"))
        assert [(one.who, one.baseline, one.difference.mean) for one in verdicts] == [
            ("trained (iteration 2)", "base", 1 / 8),
            ("trained (iteration 2)", "trained (iteration 1)", -1 / 8),
        ]

    @pytest.mark.parametrize(
        ("measure", "low", "high", "word"),
        [
            ("accuracy", 0.1, 0.2, "better"),
            ("accuracy", -0.2, -0.1, "worse"),
            ("test_loss", 0.1, 0.2, "worse"),
            ("test_loss", -0.1, 0.2, "not told apart"),
            ("of_a_plugin", 0.1, 0.2, "unknown"),
        ],
    )
    def test_words(self, measure: str, low: float, high: float, word: str) -> None:
        interval = MeanInterval((low + high) / 2, low, high)
        one = Verdict("us", "them", measure, 1.0, 0.5, interval, "3 seeds")
        assert one.word == word
        assert ("worse than them" in sentence([one])) == (word == "worse")

    def test_without_an_interval_nothing_is_claimed(self) -> None:
        one = Verdict("us", "them", "accuracy", 1.0, 0.5, MeanInterval(0.5), "")
        assert one.word == "unknown"
        assert sentence([one]) == "us and them differ in accuracy by +0.5; nothing says how far chance goes."

    def test_groups_of_one_seed_over_items_and_of_three_over_seeds(self, tmp_path: Path) -> None:
        for seed in (1, 2, 3):
            write_run(tmp_path / f"ours-{seed}", seed, lr=1)
            write_run(tmp_path / f"theirs-{seed}", seed, lr=2)

        def verdict(*seeds: int) -> Verdict:
            roots = [tmp_path / f"{name}-{seed}" for name in ("ours", "theirs") for seed in seeds]
            groups = form_groups([(root.name.partition("-")[0], read_run(root, None)) for root in roots])
            runs = {str(root): read_run_data(root, root.name) for root in roots}
            return group_verdicts(compare(groups, "theirs"), runs)[0]

        assert verdict(1).basis == "8 test items, paired"
        assert verdict(1, 2).basis == "8 test items, paired"
        assert verdict(1, 2, 3).basis == "3 seeds, paired"
        assert verdict(1).difference == MeanInterval(0.0, 0.0, 0.0)


class TestFigures:
    """What the figures show, in numbers."""

    def test_histograms_share_their_bins(self) -> None:
        """The bins hold the shares of each sample; what lies beyond them is in the outermost ones."""
        found = histograms({"a": [0, 0, 1, 3], "b": [3, 3], "none": []}, whole=True)
        assert [series.name for series in found] == ["a", "b"]
        assert [(point.x, point.y) for point in found[0].points] == [(0, 0.5), (1, 0.25), (2, 0), (3, 0.25), (4, 0)]
        assert [point.y for point in found[1].points] == [0, 0, 0, 1.0, 0]

    def test_an_outlier_does_not_press_the_others_into_one_bin(self) -> None:
        values = [float(number) for number in range(100)]
        points = histograms({"a": [*values, 1e9]})[0].points
        assert points[-1].x < 101
        assert sum(point.y for point in points) == pytest.approx(1.0)

    @pytest.mark.parametrize("values", [[2.0], [2.0, 2.0], [-1e-9, 1e-9]])
    def test_histogram_of_hardly_anything(self, values: list[float]) -> None:
        points = histograms({"a": values})[0].points
        assert sum(point.y for point in points) == pytest.approx(1.0)

    def test_scores_before_and_after_stand_in_one_figure(self, run: RunData) -> None:
        """The same student gave both; 8 examples with influences from -3 to 4."""
        one = plot(run, "scores-1")
        assert [series.name for series in one.series] == ["iteration_1/influence", "iteration_1/influence_after"]
        assert "nats per token" in one.x
        assert one.series[0].points[0].x == -3
        assert one.series[0].points[-1].x == pytest.approx(4)

    def test_limits_of_guard_and_monitor(self, run: RunData) -> None:
        """The guard's: 3/4 of the baseline's entropy of 4. The monitor's: 1/4 above what divergence was at first."""
        assert [guide.value for guide in plot(run, "scores-by-token-entropy").guides] == [3.0]
        divergence = plot(run, "iteration_1-aligned_teacher-divergence")
        assert [(guide.axis, guide.value, guide.label) for guide in divergence.guides] == [
            ("y", 0.25, "limit"),
            ("x", 10.0, "kept"),
        ]
        assert [point.y for point in divergence.series[0].points] == [0.0, 0.1, 0.2]

    def test_students_stand_at_the_steps_of_their_teacher(self, run: RunData) -> None:
        """The warm student's teacher had made none, the trained one's was kept at step 10 of 20."""
        found = students_by_progress({"run": [run]})
        accuracy = next(one for one in found if one.name == "alignment-and-accuracy")
        assert isinstance(accuracy, Plot)
        assert [(point.x, point.y) for point in accuracy.series[0].points] == [(0, 3 / 8), (10, 5 / 8)]

    def test_influence_along_training(self, tmp_path: Path) -> None:
        """Of each training that measured it; what is no number is left out, and so is a single point."""
        directory = write_run(tmp_path / "run")
        rows = [{"step": step, "influence_positive_rate": 1 - step / 10} for step in (0, 2, 4)]
        path = directory / "iteration_1" / "trained" / DURING_TRAINING
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": "x"}]))
        (directory / "iteration_1" / "warmup" / path.name).write_text(json.dumps(rows[0]) + "\n")
        files = RunDirectory(directory)
        for stage in ("trained", "warmup"):  # of a finished stage, what it vouches for is read
            files.finish(f"iteration_1/{stage}", sorted(files.directory(f"iteration_1/{stage}").iterdir()))
        run = read_run_data(directory, "run")
        one = figure(run, "during-training-influence-positive-rate")
        assert isinstance(one, Plot)
        (series,) = one.series
        assert series.name == "iteration_1/trained"
        assert [(point.x, point.y) for point in series.points] == [(0, 1.0), (2, 0.8), (4, 0.6)]
        assert "Examples that help, along training" in page_on(run)

    def test_lengths_in_tokens(self, run: RunData, tmp_path: Path) -> None:
        """Half of the responses have 2 tokens at most; a training that did not count is left out, and so is a text."""
        one = plot(run, "tokens-of-responses")
        (series,) = one.series
        assert series.name == "iteration_1/trained"
        assert [(point.x, point.y) for point in series.points] == [(2, 0), (2, 0.5), (6, 1)]
        assert plot(run, "tokens-of-prompts").series[0].points[-1] == Point(9, 1)
        directory = write_run(tmp_path / "run")
        HandMadeRun(directory).finish("iteration_1/trained", "student", length_quantiles={"responses": ["x", 1]})
        names = [one.name for some in run_figures(read_run_data(directory, "run")).values() for one in some]
        assert not [name for name in names if name.startswith("tokens-of")]

    def test_timeline(self, run: RunData) -> None:
        """Ten stages of two seconds, one after another."""
        one = figure(run, "timeline")
        assert isinstance(one, Rows)
        assert [(row.start, row.value) for row in one.rows[:2]] == [(0, 2), (2, 4)]
        assert one.rows[-1].value == 20

    def test_cost_per_record(self, run: RunData) -> None:
        """Eight examples in two seconds; a training is counted by the examples that it read."""
        html = cost_table(run)
        row = '<td>iteration_1/{}</td><td>{}</td><td>finished</td><td class="number">2</td><td class="number">8</td>'
        per_record = '<td class="number">0.25</td>'
        used = "".join(f'<td class="number">{value}</td>' for value in ("1,000", "500", "0.2500"))
        assert row.format("training_data", "Synthesize") + per_record + used in html
        assert row.format("trained", "TrainStudent") + per_record in html
        cells = ["20", "8", "2.5", "3,000", "1,500", "0.7500"]
        whole = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        assert f"<td>all stages, by training example</td><td></td><td></td>{whole}" in html

    def test_csv_holds_no_formula(self) -> None:
        one = Plot("name", "title", "x", "y", [Series("=1+1", [Point(1, 2, 1.5, 2.5, label="@a")])], "points")
        rows = [*csv.reader(io.StringIO(one.csv()))]
        assert rows == [["series", "label", "x", "y", "low", "high"], ["'=1+1", "'@a", "1", "2", "1.5", "2.5"]]
        bars = Rows("name", "title", "x", [Row("-a", 2.0)], "bars")
        assert bars.csv().splitlines()[1] == ",'-a,0.0,2.0,,"

    @pytest.mark.parametrize(
        "ends", [(0, 1), (-3.2, 17), (1e-6, 9e-6), (123456, 123999), (1e-310, 5e-310), (-0.00012, 0.00031), (0, 0)]
    )
    def test_ticks_are_few_round_and_within(self, ends: tuple[float, float]) -> None:
        found = ticks(*ends)
        assert 1 <= len(found) <= 6
        assert all(ends[0] - 1e-9 <= place <= ends[1] + 1e-9 for place in found)
        assert len(set(labels(found))) == len(found), "labels tell the ticks apart"
        assert len(found) > 2 or ends in ((0, 0), (1e-310, 5e-310))

    def test_labels(self) -> None:
        assert labels([0.0, 0.5, 1.0]) == ["0", "0.5", "1.0"]
        assert labels([-2e-4, 0.0, 2e-4]) == ["\N{MINUS SIGN}2e\N{MINUS SIGN}4", "0", "2e\N{MINUS SIGN}4"]
        assert labels([10_000.0, 20_000.0]) == ["10,000", "20,000"]


class TestLists:
    """The rows that a reader looks through."""

    def test_items_that_got_worse_come_first(self, run: RunData) -> None:
        """The base alone answers item 5 right, warm-up and trained item 6, trained alone 2 and 3."""
        found = browsers.browsers(run, {"item-5": ("2 + 3", "5")}, 10**6)["items"]
        assert found["columns"] == ["base", "warmup", "trained"]
        assert [row["id"] for row in found["rows"]][:4] == ["item-5", "item-2", "item-3", "item-6"]
        assert found["rows"][0]["question"] == "2 + 3"
        assert "question" not in found["rows"][1]
        assert found["rows"][0]["answers"]["base"][1:] == [True, False]
        assert found["how"].startswith("the 1 that got worse first")

    def test_pairs_with_both_influences(self, run: RunData) -> None:
        pairs = browsers.browsers(run, {}, 10**6)["pairs"][0]
        row = next(row for row in pairs["rows"] if row["id"] == "pair-2")
        assert row["chosen"]["scores"] == {"iteration_1/influence": [0.0, 0.5]}
        assert row["rejected"]["scores"] == {"iteration_1/influence": [-1.0, 0.5]}
        assert row["shots"] == ["seed-1", "seed-2"]

    def test_best_and_worst(self, tmp_path: Path) -> None:
        """Of 50 examples 20 on each side; of three the middle one is a best one, and none stands twice."""
        many = read_run_data(write_run(tmp_path / "many", count=50), "many")
        rows = browsers.browsers(many, {}, 10**6)["scored"][0]["rows"]
        assert [row["best"]["score"][0] for row in rows] == [46 - place for place in range(20)]
        assert [row["worst"]["score"][0] for row in rows] == [place - 3 for place in range(20)]
        few = read_run_data(write_run(tmp_path / "few", count=3), "few")
        rows = browsers.browsers(few, {}, 10**6)["scored"][0]["rows"]
        assert [(row["best"]["id"][-1], row["worst"] and row["worst"]["id"][-1]) for row in rows] == [
            ("2", "0"),
            ("1", None),
        ]

    def test_every_reason_has_a_sample_where_there_is_little_room(self, run: RunData) -> None:
        found = browsers.browsers(run, {}, 8000)["rejections"][0]
        assert found["total"] == 4
        assert [row["reason"] for row in found["rows"]][:3] == ["near duplicate", "too short", "as write a b again"]
        assert found["reasons"][0] == ["near duplicate", 2]

    def test_pairs_of_little_room_span_all_margins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(browsers, "MAX_PAIRS", 20)
        run = read_run_data(write_run(tmp_path / "run", count=200), "run")
        pairs = browsers.browsers(run, {}, 20_000)["pairs"][0]
        margins = [row["margin"] for row in pairs["rows"]]
        assert pairs["total"] == 100
        assert 3 <= len(margins) < 20
        assert max(margins) > 150
        assert min(margins) < 100

    def test_budget(self) -> None:
        rows = [{"text": "x" * 88}] * 10  # 100 bytes each
        budget = Budget(2000)
        assert len(budget.take(rows, 0.3)) == 6
        assert budget.left == 1400

    def test_long_texts_say_what_is_left_out(self) -> None:
        assert short("a\x1b\ud83d") == "a\\x1b\\ud83d"
        assert short("x" * LONGEST) == "x" * LONGEST
        assert short("x" * (LONGEST + 1234)) == "x" * LONGEST + " … (1,234 more characters)"

    def test_embedded_json_ends_no_script(self) -> None:
        text = embedded({"a": "</script><!-- <script>"})
        assert "<" not in text
        assert json.loads(text) == {"a": "</script><!-- <script>"}


class TestRuns:
    """Runs that are not whole."""

    def test_size_has_a_limit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("montessori_pl.report.page.page.MAX_BYTES", 250_000)
        run = read_run_data(write_run(tmp_path / "run", text=HOSTILE, count=12), "run")
        page = page_on(run)
        assert 200_000 < len(page.encode()) < 270_000
        assert "more characters" in page

    def test_interrupted_run(self, tmp_path: Path) -> None:
        """A data stage with a torn line, and scores of two processes: what is whole is shown."""
        run = HandMadeRun(tmp_path / "run", seed_everything=1)
        directory = run.begin("iteration_1/probing_data", "Synthesize", {"teacher": "base"})
        append_records(directory / "examples.jsonl", examples("probing_data", "a", 3))
        with open(directory / "examples.jsonl", "a") as file:
            file.write('{"id": "torn')
        inputs = {"examples": "iteration_1/probing_data 0", "student": "base"}
        directory = run.begin("iteration_1/influence", "ScoreExamples", inputs)
        for rank, one in enumerate(scores("probing_data", 2)):
            append_records(directory / f"scores.part{rank}.jsonl", [one])
        found = read_run_data(tmp_path / "run", "run")
        assert len(found.stages["iteration_1/probing_data"].examples) == 3
        assert [one.value for one in found.stages["iteration_1/influence"].scores] == [-3.0, -2.0]
        page = page_on(found)
        assert "No evaluation of two students has finished; it has reached iteration_1/probing_data" in page
        assert "iteration_1/influence (so far)" in page

    def test_scores_are_put_together_while_they_are_read(self, tmp_path: Path) -> None:
        """Where the whole file is there, its parts count no more; where a part is gone, the others do."""
        run = HandMadeRun(tmp_path / "run", seed_everything=1)
        directory = run.begin("iteration_1/influence", "ScoreExamples", {"student": "base"})
        for rank, one in enumerate(scores("data", 2)):
            append_records(directory / f"scores.part{rank}.jsonl", [one])
        (directory / "scores.part2.jsonl").symlink_to(tmp_path / "gone")
        assert len(read_run_data(tmp_path / "run", "run").stages["iteration_1/influence"].scores) == 2
        append_records(directory / "scores.jsonl", scores("data", 2))
        assert len(read_run_data(tmp_path / "run", "run").stages["iteration_1/influence"].scores) == 2

    def test_nothing_but_a_stage_that_has_begun(self, tmp_path: Path) -> None:
        HandMadeRun(tmp_path / "run").begin("iteration_1/data", "Synthesize", {})
        assert "iteration_1/data" in page_on(read_run_data(tmp_path / "run", "run"))

    def test_changed_file_is_named(self, tmp_path: Path) -> None:
        root = write_run(tmp_path / "run")
        (root / "iteration_1/influence/scores.jsonl").write_text("{}\n")
        with pytest.raises(RunDirectoryError, match=r"influence/scores\.jsonl is not what stage .* wrote"):
            read_run_data(root, "run")

    def test_names_of_ours_with_another_meaning(self, tmp_path: Path) -> None:
        """Settings and numbers of a plug-in."""
        run = HandMadeRun(tmp_path / "run", seed_everything=1, data="all")
        inputs = {"examples": "iteration_1/mine 0", "student": "base", "guard.baseline": "iteration_1/mine 0"}
        directory = run.begin("iteration_1/mine", "Mine", inputs, guard="dog", monitor=[1], limits=None)
        append_records(directory / "examples.jsonl", examples("mine", "a", 2))
        append_records(directory / "scores.jsonl", scores("mine", 2))
        (directory / "alignment_evaluations.jsonl").write_text('{"step": "first"}\n{"step": 2, "samples": null}\n')
        odd = {"students": {"a": 1, "b": {"accuracy": "high"}}, "diversity": 3, "monitor": 7, "pairs": ["a"]}
        run.finish("iteration_1/mine", "mine", **odd, mean=None, standard_error="small", cost="dear")
        page = page_on(read_run_data(tmp_path / "run", "run"))
        assert "iteration_1/mine (so far)" not in page
        assert "<td>Mine</td>" in page

    def test_files_of_plugins_that_hold_something_else(self, tmp_path: Path) -> None:
        """They are as they were written, and are left out with a sentence."""
        run = HandMadeRun(tmp_path / "run")
        directory = run.begin("iteration_1/mine", "Mine", {})
        for name in ("scores", "pairs", "examples", "rejections", "alignment_evaluations"):
            (directory / f"{name}.jsonl").write_text('{"mine": 1}\n')
        run.finish("iteration_1/mine", "scores")
        found = read_run_data(tmp_path / "run", "run")
        assert len(found.warnings) == 4
        assert found.warnings[0].startswith("iteration_1/mine: examples.jsonl is left out of this page")
        assert "is left out of this page" in page_on(found)
