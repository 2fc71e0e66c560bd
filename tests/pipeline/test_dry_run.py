"""`fit --dry_run`: what it foresees beside what a run then counts, and that it does nothing.

The classroom's stages run for real here, at the size of a short recipe; what they count is the truth for the plan.
"""

import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from rich.console import Console

from montessori_pl.batches.samplers import EpochBatches, Sharing
from montessori_pl.cli import fit as cli
from montessori_pl.data.records import Example, append_records, read_lines, read_records
from montessori_pl.estimates.estimate import ExpectedRecords, StepEstimate, Work, beyond_budgets, evenly, real, together
from montessori_pl.estimates.training import estimate_training
from montessori_pl.generation import OpenAIBackend, Price
from montessori_pl.generation.request_journal import Answer, spending_of
from montessori_pl.optim import TrainingSettings
from montessori_pl.pipeline.dry_run_table import print_estimates
from montessori_pl.stages.training.alignment_monitor import AlignmentMonitor

CONFIGS = Path(__file__).parents[2] / "configs"
ELSEWHERE = (
    "llama3_8b",
    "qwen2.5_0.5b_from_7b",
    "real_text",
    "recorded_teachers",
    "smollm2",
    "smollm2_active",
    "smollm2_selection",
    "tinyllama_1.1b",
)
SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.stem not in ELSEWHERE)
"""Without the recipes whose data or models do not come with the program."""
PLUGIN = '''
from montessori_pl.stages import Kind, Stage, StageContext


class FromElsewhere(Stage):
    """Makes examples, and says nothing of how many."""

    produces = Kind.EXAMPLES
    artifacts = ("examples.jsonl",)

    def run(self, context: StageContext) -> dict[str, str]:
        raise AssertionError("a dry run runs nothing")
'''

Planner = Callable[..., list[StepEstimate]]


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory; `main` puts it on the import path, which is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Planner:
    """Make a dry run that must not load any weights; returns the steps with their plans."""

    def never(*arguments: Any, **settings: Any) -> Any:
        raise AssertionError("a dry run loads no weights")

    def make(config: Path | str, *arguments: str) -> list[StepEstimate]:
        found: list[StepEstimate] = []
        with monkeypatch.context() as patch:
            patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)
            patch.setattr(cli, "print_estimates", lambda planned, console: found.extend(planned))
            cli.main(["fit", "--config", str(config), "--dry_run", *arguments])
        return found

    return make


@pytest.fixture
def writing(tiny_recipe: Callable[..., Path]) -> Path:
    """Self-Instruct of 400 examples in rounds of the shipped size, without what follows."""
    counts = {"num_examples": 400, "prompts_per_batch": 32, "max_candidates_per_example": 20}
    path = tiny_recipe("self_instruct.yaml", training_data=counts)
    config = yaml.safe_load(path.read_text())
    config["recipe"] = {"training_data": config["recipe"]["training_data"]}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def work_of(steps: Sequence[StepEstimate], name: str) -> list[Work]:
    """All of a stage in each iteration, added up."""
    found = [step for step in steps if step.key.endswith(f"/{name}")]
    return [together(step.estimate.work) for step in found if step.estimate is not None]


def files(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def metrics(run: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "iteration_1" / name / "metrics.json").read_text())
    return content


def work(**numbers: Any) -> Work:
    return Work(what="test", **numbers)


class TestRecipes:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "name", [pytest.param(one, marks=[pytest.mark.slow] * (one != "iter1.yaml")) for one in SHIPPED]
    )
    def test_shipped_recipe(self, name: str, plan: Planner, tmp_path: Path) -> None:
        steps = plan(name)
        assert all(step.estimate is not None and not step.finished for step in steps)
        assert sum(bool(step.estimate.prompts) for step in steps if step.estimate is not None) >= 1
        assert not list(tmp_path.iterdir()), "nothing is written, not even an empty directory"

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "missing"),
        [
            ("real_text.yaml", "data.seed_tasks: "),
            ("recorded_teachers.yaml", "data.seed_tasks: "),
            ("smollm2.yaml", "student: there is no file 'checkpoints/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'"),
        ],
    )
    def test_shipped_recipe_without_its_data_or_model(
        self, name: str, missing: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        said = []
        for arguments in ([], ["--dry_run"]):
            with pytest.raises(SystemExit):
                cli.main(["fit", "--config", name, "--run", "run", *arguments])
            said.append(capsys.readouterr().err)
        assert said[0] == said[1]
        assert missing in said[0]
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_growing_set_is_counted_once(self, plan: Planner) -> None:
        """The seeds of 96 rows stand in every round's set, and are one part of it; 634 more come with each round."""
        trained = work_of(plan("llm2llm.yaml"), "trained")
        assert [one.steps for one in trained] == [3 * -(-(96 + n * 634) // 32) for n in (1, 2, 3)] == [69, 129, 189]

    @pytest.mark.slow
    def test_price_and_budget(self, plan: Planner, capsys: pytest.CaptureFixture[str]) -> None:
        steps = plan("self_instruct_api.yaml")
        (written,) = work_of(steps, "training_data")
        assert written.cost is not None
        assert written.cost == pytest.approx((0.15 * written.prompt_tokens + 0.6 * written.completion_tokens) / 1e6)
        assert work_of(steps, "trained")[0].cost is None, "nobody is paid for it"
        assert "budget" not in printed(steps), "a dollar is enough"
        poor = plan("self_instruct_api.yaml", "--teachers.strong.generation.init_args.budget", "0.01")
        assert "warning: the answers of strong are expected to cost $0.03" in printed(poor).replace("\n", " ")

    def test_stage_that_says_nothing(self, plan: Planner, tiny_recipe: Callable[..., Path]) -> None:
        path = tiny_recipe("self_instruct.yaml")
        config = yaml.safe_load(path.read_text())
        config["recipe"]["training_data"] = {"class_path": "elsewhere.FromElsewhere"}
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        Path("elsewhere.py").write_text(PLUGIN)
        first, second, third = plan(path)
        assert (first.estimate, first.state, first.reason) == (None, "no estimate", "")
        assert (second.estimate, second.state) == (None, "no estimate")
        assert third.estimate is not None, "the evaluation does not depend on it"
        lines = " ".join(printed([first, second, third]).split())
        assert lines.count("no estimate") == 3
        assert "as far as it is known" in lines
        assert "iteration_1/trained: no estimate, because it reads iteration_1/training_data, which has none." in lines


class TestClassroom:
    """Beside what a run counts."""

    @pytest.mark.slow
    def test_writing(self, plan: Planner, writing: Path) -> None:
        run = writing.parent / "run"
        (step,) = plan(writing)
        assert step.estimate is not None
        assert step.state == ""
        instructions, responses = step.estimate.work
        assert (instructions.requests, instructions.max_requests) == (4 * 128, 63 * 128), "445 and 8000, in rounds"
        assert (responses.requests, responses.max_requests) == (400, 63 * 128)

        # The first half, a dry run amid the stage, and the rest.
        with pytest.raises(SystemExit):
            cli.main(["fit", "--config", str(writing), "--recipe.training_data.max_candidates_per_example", "0.6"])
        before = files(run)
        (rest,) = plan(writing)
        assert files(run) == before
        assert rest.state == "going on"
        cli.main(["fit", "--config", str(writing)])
        counted = metrics(run, "training_data")
        journal = list(read_lines(run / "iteration_1/training_data/journal.jsonl"))
        done = {name: sum(commit[name] for commit in journal[:2]) for name in ("prompt_tokens", "generated_tokens")}
        whole, half = together(step.estimate.work), together(rest.estimate.work if rest.estimate else [])
        assert whole.prompt_tokens == pytest.approx(counted["prompt_tokens"], rel=0.2)
        assert whole.completion_tokens == pytest.approx(counted["generated_tokens"], rel=0.2)
        assert done["prompt_tokens"] + half.prompt_tokens == pytest.approx(counted["prompt_tokens"], rel=0.2)
        assert done["generated_tokens"] + half.completion_tokens == pytest.approx(counted["generated_tokens"], rel=0.2)
        assert half.prompt_tokens < 0.75 * whole.prompt_tokens, "the rest is less than the whole"

        # The prompts were those of the run: in the first round, nothing had been written that could be shown.
        examples = read_records(run / "iteration_1/training_data/examples.jsonl", Example)
        first = [example for example in examples if example.batch == 0]
        assert len(first) > 64
        for example in first:
            assert example.prompt in step.estimate.prompts[int(example.prompt_id.rpartition("-")[2])]

        # What has finished is told by its own numbers.
        (finished,) = plan(writing)
        assert finished.estimate is not None
        assert (finished.state, finished.finished) == ("finished before", True)
        assert finished.estimate.work[0].prompt_tokens == counted["prompt_tokens"]
        assert finished.estimate.work[0].completion_tokens == counted["generated_tokens"]

    @pytest.mark.slow
    def test_finished_stage_of_which_more_is_asked(
        self, plan: Planner, writing: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It goes on as the run will, also where less is asked for and nothing is left; a reader makes it a mistake."""
        run, count = writing.parent / "run", "--recipe.training_data.num_examples"
        cli.main(["fit", "--config", str(writing), count, "250"])
        first, before = metrics(run, "training_data"), files(run)
        (rest,) = plan(writing)
        assert rest.estimate is not None
        assert (rest.state, rest.finished) == ("going on", False)
        assert rest.estimate.expected_output is not None
        assert rest.estimate.expected_output.count == 400
        (less,) = plan(writing, count, "100")
        assert less.estimate is not None
        assert (less.state, less.finished) == ("going on", False)
        assert less.estimate.expected_output is not None
        assert less.estimate.expected_output.count == 250, "what was written stays"
        nothing = together(less.estimate.work)
        assert (nothing.max_requests, nothing.prompt_tokens, nothing.max_completion_tokens) == (0, 0, 0)
        assert files(run) == before

        cli.main(["fit", "--config", str(writing)])
        second, foreseen = metrics(run, "training_data"), together(rest.estimate.work)
        assert second["accepted"] == 400
        expected = {"prompt_tokens": foreseen.prompt_tokens, "generated_tokens": foreseen.completion_tokens}
        for name, tokens in expected.items():
            assert tokens == pytest.approx(second[name] - first[name], rel=0.2)
        (finished,) = plan(writing)
        assert (finished.state, finished.finished) == ("finished before", True)
        cli.main(["fit", "--config", str(writing), count, "100"])
        assert metrics(run, "training_data") == second

        config = yaml.safe_load(writing.read_text())
        config["recipe"]["read"] = {"class_path": "ConcatExamples", "init_args": {"examples": ["training_data"]}}
        writing.write_text(yaml.safe_dump(config, sort_keys=False))
        cli.main(["fit", "--config", str(writing), count, "100"])
        capsys.readouterr()
        said = []
        for arguments in ([], ["--dry_run"]):
            with pytest.raises(SystemExit):
                cli.main(["fit", "--config", str(writing), *arguments])
            said.append(capsys.readouterr().err)
        log = writing.parent / "run" / "error.log"
        assert said[0] == f"{said[1]}the traceback is in {log}\n", "only a run keeps it"
        assert "(recipe.training_data.init_args.num_examples: 100 then, 400 now)" in said[0]

    @pytest.mark.slow
    def test_what_reads_a_stage_of_which_more_is_asked(self, plan: Planner, writing: Path) -> None:
        """A stage that comes after it is planned with all that there will be."""
        count = "--recipe.training_data.num_examples"
        cli.main(["fit", "--config", str(writing), count, "20"])
        config = yaml.safe_load(writing.read_text())
        config["recipe"]["read"] = {"class_path": "ConcatExamples", "init_args": {"examples": ["training_data"]}}
        writing.write_text(yaml.safe_dump(config, sort_keys=False))
        for number in ("20", "90"):
            written, read = plan(writing, count, number)
            assert written.finished == (number == "20")
            assert read.estimate is not None
            assert read.estimate.expected_output is not None
            assert read.estimate.expected_output.count == int(number)

    @pytest.mark.slow
    def test_mistakes_augmented_and_answered(self, plan: Planner, tiny_recipe: Callable[..., Path]) -> None:
        """A round of LLM2LLM, whose seeds two authors answer besides; nobody knows how many mistakes there will be."""
        path = tiny_recipe("llm2llm.yaml", augmented={"num_examples": 200, "deduplicate_against": None})
        config = yaml.safe_load(path.read_text())
        recipe = {name: config["recipe"][name] for name in ("seed_data", "seed_student", "mistakes", "augmented")}
        sampling = recipe["augmented"]["init_args"]["response_sampling"]
        for who in ({"teachers": "base"}, {"student": "latest"}):
            settings = {"instructions": "seed_data", "samples": 3, "sampling": sampling, **who}
            recipe[f"answers_{next(iter(who))}"] = {"class_path": "GenerateResponses", "init_args": settings}
        path.write_text(yaml.safe_dump({**config, "recipe": recipe, "iterations": 1}, sort_keys=False))
        fresh = plan(path)
        cli.main(["fit", "--config", str(path)])
        for name in ("mistakes", "augmented", "answers_teachers", "answers_student"):
            (foreseen,), counted = work_of(fresh, name), metrics(path.parent / "run", name)
            exactly = name != "augmented"
            assert foreseen.prompt_tokens == pytest.approx(counted["prompt_tokens"], rel=0.005 if exactly else 0.2)
            assert foreseen.completion_tokens == pytest.approx(counted["generated_tokens"], rel=0.2)
            assert counted["generated_tokens"] <= foreseen.max_completion_tokens

    @pytest.mark.slow
    def test_scores_pairs_and_training(self, plan: Planner, tiny_recipe: Callable[..., Path]) -> None:
        """A whole tiny iteration; what a plan then says of the next one rests on its records."""
        path = tiny_recipe("random_pairs.yaml")
        fresh = plan(path)
        cli.main(["fit", "--config", str(path)])
        run = path.parent / "run"
        for name in ("warmup", "trained", "aligned_teacher"):
            (foreseen,) = work_of(fresh, name)
            assert foreseen.steps == pytest.approx(metrics(run, name)["steps"], abs=2)
        (foreseen,) = work_of(fresh, "probing_data")
        counted = metrics(run, "probing_data")
        assert foreseen.prompt_tokens == pytest.approx(counted["prompt_tokens"], rel=0.2)
        assert foreseen.completion_tokens == pytest.approx(counted["generated_tokens"], rel=0.2)
        before = files(run)
        again = plan(path, "--iterations", "2")
        assert files(run) == before
        assert all(step.finished == step.key.startswith("iteration_1/") for step in again)
        assert work_of(again, "trained")[1].steps == metrics(run, "trained")["steps"]
        shown = printed(again)
        assert max(map(len, shown[: shown.index("≤:")].splitlines())) <= 80
        assert shown.count("finished before") == sum(step.finished for step in again)

    def test_later_rounds_evaluate_the_base_as_well(self, plan: Planner) -> None:
        """Their limits are measured from it; in the first round it is the teacher before the first step."""
        steps = plan("grpo.yaml")
        first, *later = [work_of(steps, f"policy_{number}")[0].requests for number in (1, 2, 3, 4)]
        assert later == [first + AlignmentMonitor().num_samples] * 3


class TestMistakes:
    """A dry run finds them in the same words."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "changes",
        [
            {"warmup_data": {"teacher": "nobody"}},
            {"config": {"student": {"class_path": "StudentModule", "init_args": {"backbone": "nowhere/to/be"}}}},
            {"config": {"trainer": {"logger": False, "accelerator": "abacus"}}},
        ],
    )
    def test_before_anything_runs(
        self, changes: dict[str, Any], tiny_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tiny_recipe(**changes)
        said = []
        for arguments in ([], ["--dry_run"]):
            with pytest.raises(SystemExit) as exit_info:
                cli.main(["fit", "--config", str(path), *arguments])
            assert exit_info.value.code == 2
            said.append(capsys.readouterr().err)
        assert said[0] == said[1]
        assert said[0].startswith("error: ")

    @pytest.mark.slow
    def test_judge_that_does_not_exist(
        self, tiny_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A run finds it when it comes to judge."""
        signal = {"class_path": "callbacks.JudgeSignal", "init_args": {"judge": {"backbone": "nowhere/to/be"}}}
        path = tiny_recipe("judge_signal.yaml", judgements={"signal": signal})
        with pytest.raises(SystemExit):
            cli.main(["fit", "--config", str(path), "--dry_run"])
        assert "no tokenizer for the backbone 'nowhere/to/be'" in capsys.readouterr().err

    @pytest.mark.slow
    def test_changed_setting_of_a_finished_stage(
        self, tiny_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tiny_recipe("llm2llm.yaml")
        config = yaml.safe_load(path.read_text())
        config["recipe"] = {"seed_data": config["recipe"]["seed_data"]}
        path.write_text(yaml.safe_dump({**config, "iterations": 1}, sort_keys=False))
        cli.main(["fit", "--config", str(path)])
        said = []
        for arguments in ([], ["--dry_run"]):
            with pytest.raises(SystemExit):
                cli.main(["fit", "--config", str(path), "--recipe.seed_data.source", "classroom/test", *arguments])
            said.append(capsys.readouterr().err)
        log = path.parent / "run" / "error.log"
        assert said[0] == f"{said[1]}the traceback is in {log}\n", "only a run keeps it"
        assert "under other settings" in said[0]


class TestArithmetic:
    @pytest.mark.parametrize("processes", [1, 3])
    @pytest.mark.parametrize(("count", "accumulate"), [(1, 1), (7, 2), (64, 1), (65, 4), (0, 1)])
    def test_steps_are_those_of_the_batches(self, count: int, accumulate: int, processes: int) -> None:
        settings = TrainingSettings(lr=1.0, epochs=3, batch_size=4, accumulate_grad_batches=accumulate)
        batches = len(EpochBatches([5] * count, Sharing(4, accumulate, processes), 0))
        foreseen = estimate_training(settings, count, [4, 6], processes)
        assert foreseen.steps == 3 * -(-batches // accumulate)
        assert foreseen.tokens == foreseen.max_tokens == 3 * count * 5

    @pytest.mark.parametrize("every", [1, 4, 10])
    def test_looks(self, every: int) -> None:
        """One before the first step, one at the end, and one where it is time between them."""
        for steps in range(1, 41):
            looks = {0, steps, *(step for step in range(1, steps) if step % every == 0)}
            assert AlignmentMonitor(every_n_steps=every).num_evaluations(steps) == len(looks)

    def test_sums(self) -> None:
        total = together([work(requests=2, max_requests=3, cost=0.5, max_cost=1.0), work(requests=1, steps=4)])
        assert (total.requests, total.max_requests, total.steps) == (3, 3, 4)
        assert (total.cost, total.max_cost) == (0.5, 1.0)
        assert together([work(requests=1)]).cost is None, "an unknown price is not a price of nothing"

    def test_budgets(self) -> None:
        """Of one engine all stages count together; the other has enough."""
        mine = work(cost=0.6, max_cost=9.0, engine="mine", budget_left=1.0)
        other = work(cost=0.6, max_cost=9.0, engine="other", budget_left=0.7)
        (sentence,) = beyond_budgets([mine, other, mine])
        assert sentence.startswith("the answers of mine are expected to cost $1.2000")
        assert "$1.0000 are left" in sentence

    def test_what_was_spent_counts_against_the_budget(self, tmp_path: Path) -> None:
        """A torn last line is not counted, and stays where it is."""
        engine = OpenAIBackend(price=Price(input=1.0, output=2.0), budget=10.0)
        assert engine.budget_left(tmp_path) == 10.0
        answer = Answer(id="a", text="b", finished=True, num_tokens=2_000_000, num_prompt_tokens=1_000_000)
        append_records(tmp_path / "answers.jsonl", [answer])
        with open(tmp_path / "answers.jsonl", "a") as file:
            file.write('{"id": "torn')
        before = files(tmp_path)
        assert spending_of(tmp_path).usage.num_answers == 1
        assert engine.budget_left(tmp_path) == pytest.approx(10.0 - 1.0 - 4.0)
        assert OpenAIBackend().budget_left(tmp_path) is None
        assert files(tmp_path) == before

    def test_evenly(self) -> None:
        assert evenly("abcdef", 3) == ["a", "c", "e"]
        assert evenly("ab", 4) == ["a", "a", "b", "b"]
        assert evenly("", 4) == []

    def test_real_records(self) -> None:
        """Two answers to one instruction, and a third one that nobody prompted for."""
        examples = [
            Example(id="1", instruction="say one", response="1", prompt_id="p"),
            Example(id="2", instruction="say one", response="one", prompt_id="p"),
            Example(id="3", instruction="say two", response="2"),
        ]
        found: ExpectedRecords[Example] = real(examples)
        assert (found.count, found.upper_bound, found.prompts, found.instructions) == (3, 3, 1, 2)
        assert found.at_most(10) == 10


@pytest.mark.parametrize(("scored", "pairs"), [(1, 0), (20, 5), (1_000_000, 800)])
def test_pairs_are_of_prompts_of_which_several_samples_are_scored(plan: Planner, scored: int, pairs: int) -> None:
    """Of 800 prompts with up to four samples each; a signal that looks at a few of them looks at whole prompts."""
    limits = [f"--recipe.{name}.max_examples={scored}" for name in ("influence", "influence_2", "influence_3")]
    steps = plan("iter1.yaml", *limits)
    (built,) = [step for step in steps if step.key.endswith("/preferences")]
    assert built.estimate is not None
    assert built.estimate.expected_output is not None
    assert built.estimate.expected_output.count == pytest.approx(pairs, abs=3)
    assert all(number >= 0 for one in work_of(steps, "aligned_teacher") for number in (one.steps, one.tokens))


def printed(steps: Sequence[StepEstimate]) -> str:
    console = Console(file=io.StringIO(), width=80, soft_wrap=True, highlight=False)
    print_estimates(steps, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
