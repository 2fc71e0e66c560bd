"""The command line as a user interface.

Every mistake is one clear sentence on the standard error, exit status 2, and nothing written over. The quick tests use
a recipe of one stage that reads recorded examples; one test runs the shipped recipe, with small counts, to its end.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

from montessori_pl.__main__ import main as door
from montessori_pl.classroom import version
from montessori_pl.cli import MontessoriCLI, find_configs, main, shipped_configs
from montessori_pl.mistakes import SentenceParser, sentence
from montessori_pl.recipe import Step, lay_out
from montessori_pl.workspace import Workspace

Mistake = Callable[..., str]
Recipe = Callable[..., str]

SHIPPED = sorted(path.name for path in (Path(__file__).parents[1] / "configs").glob("*.yaml"))
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


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory; `main` puts it on the import path, which is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Mistake:
    """Run `fit` and return the sentence with which it ends."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main(["fit", *arguments])
        printed = capsys.readouterr()
        assert exit_info.value.code == 2
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1, "one sentence on one line"
        return printed.err.removeprefix("error: ").rstrip("\n")

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Write a recipe of one quick stage into `recipe.yaml`; `a__b=1` sets what `a: {b: 1}` means; returns its name."""

    def write(**changes: Any) -> str:
        config: dict[str, Any] = {
            "run": "run",
            "num_threads": 1,
            "student": {"class_path": "StudentModule", "init_args": {"backbone": "classroom/student"}},
            "teacher": {"class_path": "TeacherDPOModule", "init_args": {"backbone": "classroom/teacher"}},
            "generation": {"class_path": "TransformersBackend"},
            "data": {role: f"classroom/{role}[:8]" for role in ("seeds", "reference", "test")},
            "trainer": {"logger": False},
            "recipe": {"recorded": {"class_path": "RecordedExamples", "init_args": {"source": "classroom/seeds[:8]"}}},
        }
        for path, value in changes.items():
            *sections, last = path.split("__")
            node = config
            for section in sections:
                node = node.setdefault(section, {})
            node[last] = value
        Path("recipe.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return "recipe.yaml"

    return write


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a run that holds results, with its bytes."""
    ours = (".lock", "error.log")
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in ours
    }


def steps_of(*arguments: str) -> list[Step]:
    """The steps of a recipe, without running it."""

    class Reader(MontessoriCLI):
        steps: list[Step]

        def fit(self) -> None:
            recipe, pool = self._get(self.config_init, "recipe"), self._get(self.config_init, "teachers")
            self.steps = lay_out(recipe, self._get(self.config, "iterations"), pool)

    cli = Reader(
        args=["fit", *arguments],
        parser_class=SentenceParser,
        seed_everything_default=42,
        save_config_callback=None,
        auto_configure_optimizers=False,
    )
    return cli.steps


class TestMistakes:
    """What a user can get wrong, each with the sentence that says so."""

    def test_misspelt_key(self, mistake: Mistake, recipe: Recipe) -> None:
        assert mistake("--config", recipe(iteratons=3)) == (
            "the recipe file has no key 'iteratons'; did you mean 'iterations'? there are: seed_everything, run, "
            "iterations, dry_run, num_threads, student, teacher, teachers, trainer, generation, data, recipe"
        )
        assert not Path("run").exists()

    def test_misspelt_key_of_a_section(self, mistake: Mistake, recipe: Recipe) -> None:
        assert (
            mistake("--config", recipe(trainer__devises=1)) == "trainer has no key 'devises'; did you mean 'devices'?"
        )
        said = mistake("--config", recipe(data__sedes="x"))
        assert said == "data has no key 'sedes'; did you mean 'seeds'? there are: seeds, reference, test"

    def test_misspelt_setting_of_a_stage_names_the_stage(self, mistake: Mistake, recipe: Recipe) -> None:
        stage = {"class_path": "TrainStudent", "init_args": {"exmples": "recorded", "training": {"lr": 1e-3}}}
        assert mistake("--config", recipe(recipe__warmup=stage)) == (
            "recipe.warmup: TrainStudent has no setting 'exmples'; did you mean 'examples'? "
            "there are: examples, training, all_weights, first_iteration_only"
        )

    def test_misspelt_nested_setting(self, mistake: Mistake, recipe: Recipe) -> None:
        stage = {"class_path": "TrainStudent", "init_args": {"examples": "recorded", "training": {"lrr": 1e-3}}}
        said = mistake("--config", recipe(recipe__warmup=stage))
        assert said.startswith(
            "recipe.warmup: TrainStudent.training has no setting 'lrr'; did you mean 'lr'? there are: lr, epochs, "
        )

    def test_misspelt_setting_of_a_plugin(self, mistake: Mistake, recipe: Recipe) -> None:
        assert mistake("--config", recipe(student__init_args__backbon="x")) == (
            "student: StudentModule has no setting 'backbon'; did you mean 'backbone'? there are: backbone, lora, "
            "chat, base_precision"
        )
        assert mistake("--config", recipe(student__init_args__lora={"rank": 8})) == (
            "student.lora: LoraSettings has no setting 'rank'; there are: r, alpha, dropout, target_modules, layers"
        )

    def test_misspelt_class(self, mistake: Mistake, recipe: Recipe) -> None:
        said = mistake("--config", recipe(recipe__warmup={"class_path": "TrainStudnet"}))
        assert said.startswith(
            "recipe.warmup: there is no class 'TrainStudnet'; did you mean 'TrainStudent'? there are:"
        )
        assert said.endswith("a class of your own is given by its import path, MODULE.CLASS")
        signal = {"class_path": "callbacks.InfluenceProbeCalback"}
        score = {"class_path": "Score", "init_args": {"examples": "recorded", "signal": signal}}
        assert mistake("--config", recipe(recipe__influence=score)) == (
            "recipe.influence.signal: module callbacks has no class 'InfluenceProbeCalback'; did you mean "
            "'InfluenceProbeCallback'? there are: GradientCosineSignal, IFDSignal, InfluenceDuringTraining, "
            "InfluenceProbeCallback, JudgeSignal, RandomSignal, RankSurprisalSignal, RecordedQualitySignal, "
            "ResponseLengthSignal, "
            "RewardModelSignal, TrainingLossSignal, WinRate"
        )

    def test_missing_module_of_a_plugin(self, mistake: Mistake, recipe: Recipe) -> None:
        assert mistake("--config", recipe(recipe__mine={"class_path": "nowhere_to_be_found.Mine"})) == (
            "recipe.mine: there is no module 'nowhere_to_be_found' to import a class from; a file NAME.py in the "
            "working directory is imported as NAME"
        )

    def test_wrong_type(self, mistake: Mistake, recipe: Recipe) -> None:
        assert mistake("--config", recipe(iterations="many")) == "iterations: expected int, found many"
        training = {"lr": 1e-3, "schedule": "cosine"}
        stage = {"class_path": "TrainStudent", "init_args": {"examples": "recorded", "training": training}}
        assert mistake("--config", recipe(recipe__warmup=stage)) == (
            "recipe.warmup.training.schedule: expected one of constant, linear, linear_warmup, wsd, found cosine"
        )

    def test_missing_setting(self, mistake: Mistake, recipe: Recipe) -> None:
        stage = {"class_path": "TrainStudent", "init_args": {"examples": "recorded", "training": {}}}
        said = mistake("--config", recipe(recipe__warmup=stage))
        assert said == "recipe.warmup: TrainStudent needs training.lr, which is not set"
        Path("nothing.yaml").write_text("iterations: 1\n")
        said = mistake("--config", "nothing.yaml")
        assert said.startswith("run, student, generation, ")
        assert said.endswith(
            "are not set; give them in a recipe file (--config FILE), or as options such as --run VALUE"
        )

    def test_settings_that_contradict_each_other_name_the_stage(self, mistake: Mistake, recipe: Recipe) -> None:
        stage = {"class_path": "Synthesize", "init_args": {"num_examples": 4, "num_prompts": 4}}
        assert mistake("--config", recipe(recipe__written=stage)) == (
            "recipe.written: Synthesize needs either num_examples or num_prompts, "
            "found num_examples 4 and num_prompts 4"
        )

    def test_mistakes_of_a_guard(self, mistake: Mistake, recipe: Recipe) -> None:
        """It may be null, and is described by two nested classes: one sentence all the same."""

        def said(**guard: Any) -> str:
            settings = {"num_examples": 4, "guard": guard}
            return mistake("--config", recipe(recipe__written={"class_path": "Synthesize", "init_args": settings}))

        assert said(baseline="recordet") == (
            "recipe.written: guard names 'recordet', but there is no such stage; "
            "what can be read there, examples of stages before it: recorded"
        )
        assert said(baseline="recorded", fallback_teacher="latest") == (
            "recipe.written: the guard's fallback_teacher cannot be 'latest', which is the teacher that is guarded; "
            "give 'base', or the stage that trained the teacher before alignment"
        )
        assert said(baseline="recorded", limits={"token_entropy": -1.0}) == (
            "recipe.written: the limit of token_entropy must not be negative, found -1.0"
        )
        assert said(fallback="mixture") == "recipe.written.guard: CollapseGuard needs baseline, which is not set"
        assert said(baseline="recorded", fallback="half") == (
            "recipe.written.guard.fallback: expected one of none, mixture, unaligned, found half"
        )
        assert said(baseline="recorded", limits={"token_entropi": 1.0}).startswith(
            "recipe.written.guard: CollapseGuard.limits has no setting 'token_entropi'; did you mean 'token_entropy'?"
        )

    def test_option_that_does_not_exist(self, mistake: Mistake, recipe: Recipe) -> None:
        """Options are not guessed from their beginnings: a run takes hours."""
        said = mistake("--config", recipe(), "--iteration", "2")
        assert said.startswith(
            "unknown option --iteration; did you mean '--iterations'? there are: --seed_everything, "
        )
        said = mistake("--config", recipe(), "--trainer.devises", "2")
        assert said == "unknown option --trainer.devises; did you mean '--trainer.devices'?"
        said = mistake("--config", recipe(), "more")
        assert said == "unexpected argument 'more'; options are written --key VALUE"

    @pytest.mark.parametrize(("arguments", "found"), [([], ""), (["fitt"], ", found 'fitt'")])
    def test_command(self, arguments: list[str], found: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            door(arguments)
        assert capsys.readouterr().err == (
            f"error: the command is fit, compare or export{found}; "
            "for example: python -m montessori_pl fit --config iter1.yaml\n"
        )

    def test_override_of_a_stage_that_does_not_exist(self, mistake: Mistake, recipe: Recipe) -> None:
        said = mistake("--config", recipe(), "--recipe.recordd.source", "x")
        assert said == "the recipe has no stage 'recordd'; did you mean 'recorded'? there is: recorded"

    def test_override_of_a_setting_that_does_not_exist(self, mistake: Mistake, recipe: Recipe) -> None:
        assert mistake("--config", recipe(), "--recipe.recorded.sources", "x") == (
            "recipe.recorded: RecordedExamples has no setting 'sources'; did you mean 'source'? "
            "there are: source, first_iteration_only"
        )

    def test_stage_that_reads_an_unknown_name(self, mistake: Mistake, recipe: Recipe) -> None:
        stage = {"class_path": "TrainStudent", "init_args": {"examples": "recordd", "training": {"lr": 1e-3}}}
        assert mistake("--config", recipe(recipe__warmup=stage)) == (
            "recipe.warmup: examples names 'recordd', but there is no such stage; "
            "what can be read there, examples of stages before it: recorded"
        )
        assert not Path("run").exists()

    def test_missing_file(self, mistake: Mistake, recipe: Recipe) -> None:
        Path("reference.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
        assert mistake("--config", recipe(data__reference="referense.jsonl")) == (
            "data.reference: no file referense.jsonl; . holds reference.jsonl; correct the path"
        )
        assert not Path("run").exists()

    def test_unknown_name_of_the_classroom(self, mistake: Mistake, recipe: Recipe) -> None:
        said = mistake("--config", recipe(data__seeds="classroom/sedes"))
        assert said.startswith("data.seeds: unknown name 'classroom/sedes': the classroom has classroom/teacher, ")

    def test_missing_model_is_found_before_anything_runs(self, mistake: Mistake, recipe: Recipe) -> None:
        """Otherwise the first stage would be pinned to a backbone that does not exist."""
        stage = {"class_path": "Answer", "init_args": {"instructions": "recorded", "teachers": "latest"}}
        said = mistake("--config", recipe(teacher__init_args__backbone="models/nowhere", recipe__more=stage))
        assert said.startswith(
            "teacher: no tokenizer for the backbone 'models/nowhere': give a hub id, a local directory"
        )
        assert not Path("run").exists()

    def test_teacher_of_the_pool_that_does_not_exist(self, mistake: Mistake, recipe: Recipe) -> None:
        said = mistake("--config", recipe(teachers={"anna": {"backbone": "models/nowhere"}}))
        assert said.startswith("teachers.anna: no tokenizer for the backbone 'models/nowhere': give a hub id")
        lost = {"anna": {"backbone": "classroom/teacher", "adapter": "lost"}}
        said = mistake("--config", recipe(teachers=lost))
        assert said == "teachers.anna: no adapter or trained model in lost: there is no such directory"
        assert not Path("run").exists()

    def test_teacher_of_the_pool_with_the_name_of_a_stage(self, mistake: Mistake, recipe: Recipe) -> None:
        said = mistake("--config", recipe(teachers={"recorded": {"backbone": "classroom/teacher"}}))
        assert said == "'recorded' is a stage of the recipe and a teacher of the pool; call one of them otherwise"

    def test_the_teacher_is_needed_only_where_it_is_asked(self, mistake: Mistake, recipe: Recipe) -> None:
        pool = {"anna": {"backbone": "classroom/teacher"}}
        stage = {"class_path": "Answer", "init_args": {"instructions": "recorded", "teachers": "latest"}}
        said = mistake("--config", recipe(teacher=None, teachers=pool, recipe__more=stage))
        assert said == "recipe.more asks the teacher, and the recipe file has no section `teacher`"
        stage["init_args"]["teachers"] = "anna"  # type: ignore[index]
        main(["fit", "--config", recipe(teacher=None, teachers=pool, recipe__more=stage)])

    def test_teacher_that_is_not_in_the_pool(self, mistake: Mistake, recipe: Recipe) -> None:
        stage = {"class_path": "Answer", "init_args": {"instructions": "recorded", "teachers": "ann"}}
        said = mistake("--config", recipe(teachers={"anna": {"backbone": "classroom/teacher"}}, recipe__more=stage))
        assert said == (
            "recipe.more: teachers names 'ann', but there is no such stage; "
            "what can be read there, teacher of stages before it: latest, base, anna"
        )

    def test_trainer_that_cannot_be_built_is_found_before_anything_runs(self, mistake: Mistake, recipe: Recipe) -> None:
        settings = {"accelerator": "cpu", "devices": "x", "logger": False}
        assert mistake("--config", recipe(trainer=settings)) == (
            "trainer: `devices` selected with `CPUAccelerator` should be an int > 0."
        )
        assert not Path("run").exists()

    def test_empty_seed_set(self, mistake: Mistake, recipe: Recipe) -> None:
        Path("seeds.jsonl").write_text("")
        assert mistake("--config", recipe(data__seeds="seeds.jsonl")) == (
            "data.seeds: no row to read in seeds.jsonl: it has 0 rows; correct the file or the slice"
        )
        assert not Path("run").exists()

    def test_reference_that_overlaps_the_test_set(self, mistake: Mistake, recipe: Recipe) -> None:
        said = mistake("--config", recipe(data__reference="classroom/test[4:12]"))
        assert re.fullmatch(
            r"data\.reference \(classroom/test\[4:12\]\) and data\.test \(classroom/test\[:8\]\) share 4 instructions, "
            r"for example \S+ = \S+; take disjoint rows, for example FILE\[:64\] and FILE\[64:\]",
            said,
        )
        assert not Path("run").exists()

    def test_recipe_file_that_is_not_yaml(self, mistake: Mistake) -> None:
        Path("bad.yaml").write_text("run: [1\niterations: 2\n")
        assert (
            mistake("--config", "bad.yaml")
            == "bad.yaml is not YAML: expected ',' or ']', but got ':' at line 2, column 11"
        )

    def test_unknown_recipe_file_lists_the_shipped_ones(self, mistake: Mistake) -> None:
        assert mistake("--config", "iter9.yaml") == (
            f"no recipe file 'iter9.yaml' in the working directory; those that ship with us are: {', '.join(SHIPPED)}"
        )

    def test_changed_setting_of_a_finished_stage(self, mistake: Mistake, recipe: Recipe) -> None:
        main(["fit", "--config", recipe()])
        before = contents(Path("run"))
        assert mistake("--config", "recipe.yaml", "--recipe.recorded.source", "classroom/seeds[:4]") == (
            "stage iteration_1/recorded of run has finished under other settings (recipe.recorded.init_args.source: "
            f"'classroom/seeds[:8] (version {version()})' then, 'classroom/seeds[:4] (version {version()})' now); "
            "restore them, start another run with --run DIR, "
            "or delete run/iteration_1/recorded to do the stage again"
        )
        assert contents(Path("run")) == before

    def test_two_runs_on_one_directory(self, mistake: Mistake, recipe: Recipe) -> None:
        main(["fit", "--config", recipe()])
        program = (
            "import sys; from pathlib import Path; from montessori_pl.workspace import Workspace\n"
            "with Workspace(Path('run')).locked(): print('locked', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "locked\n"
            before = contents(Path("run"))
            said = mistake("--config", "recipe.yaml")
            assert contents(Path("run")) == before
            other.communicate("")
        assert re.fullmatch(
            rf"run is being written by process {other.pid} on \S+; wait for it, stop it, or choose another directory "
            "with --run",
            said,
        )

    def test_damaged_artifact(self, mistake: Mistake, recipe: Recipe) -> None:
        main(["fit", "--config", recipe()])
        Path("run/iteration_1/recorded/examples.jsonl").write_text("{}\n")
        training = {"class_path": "TrainStudent", "init_args": {"examples": "recorded", "training": {"lr": 1e-3}}}
        assert mistake("--config", recipe(recipe__warmup=training)) == (
            "run/iteration_1/recorded/examples.jsonl is not what stage iteration_1/recorded wrote; restore the file, "
            "or delete run/iteration_1/recorded to do the stage again"
        )

    def test_words_of_jsonargparse_that_nobody_expected_are_passed_on(self) -> None:
        assert sentence('Parser key "run":\n  Something   quite\n  else') == "run: Something quite else"


class TestConfigs:
    """Recipe files, and what can be said on the command line."""

    @pytest.mark.parametrize("name", SHIPPED)
    def test_shipped_recipes_parse_and_lay_out(self, name: str) -> None:
        config = yaml.safe_load((shipped_configs() / name).read_text())
        assert (shipped_configs() / name).read_text().startswith("# python "), "a recipe begins with what runs it"
        steps = steps_of("--config", name)
        assert max(step.iteration for step in steps) == config["iterations"]
        assert [step.name for step in steps if step.iteration == 1] == list(config["recipe"])

    def test_working_directory_comes_first(self) -> None:
        assert find_configs(["fit", "--config", "iter1.yaml"])[2] == str(shipped_configs() / "iter1.yaml")
        assert find_configs(["fit", "--config=iter1.yaml"])[1] == f"--config={shipped_configs() / 'iter1.yaml'}"
        Path("iter1.yaml").write_text("run: mine\n")
        assert find_configs(["fit", "--config", "iter1.yaml"]) == ["fit", "--config", "iter1.yaml"]

    def test_settings_of_stages_can_be_overridden(self, recipe: Recipe) -> None:
        steps = steps_of(
            *("--config", "iter1.yaml", "--recipe.warmup.training.lr", "1e-4", "--recipe.influence.signal.lr", "2e-4")
        )
        stages: dict[str, Any] = {step.name: step.stage for step in steps}
        assert stages["warmup"].training.lr == 1e-4
        assert stages["warmup"].training.schedule == "linear_warmup", "what is not overridden stays"
        assert stages["influence"].signal.lr == 2e-4
        assert list(stages) == list(yaml.safe_load((shipped_configs() / "iter1.yaml").read_text())["recipe"])

    def test_later_files_go_over_earlier_ones(self, recipe: Recipe) -> None:
        Path("more.yaml").write_text("iterations: 2\n")
        assert [step.key for step in steps_of("--config", recipe(), "--config", "more.yaml")] == [
            "iteration_1/recorded",
            "iteration_2/recorded",
        ]

    def test_help_shows(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="0"):
            main(["fit", "--help"])
        printed = capsys.readouterr().out
        for text in ("--run", "Directory of the run", "--recipe", "--data.reference", "--trainer.devices"):
            assert text in printed

    def test_both_commands_are_the_same_program(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: Recipe
    ) -> None:
        arguments = ["fit", "--config", "iter1.yaml", "--recipe.warmup.training.lr=1e-4", "--print_config"]
        module = [sys.executable, "-m", "montessori_pl"]
        printed = subprocess.run([*module, *arguments], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        (command,) = entry_points(group="console_scripts", name="montessori-pl")
        assert command.load() is door
        with pytest.raises(SystemExit, match="0"):
            command.load()(arguments)
        assert capsys.readouterr().out == printed

        config = yaml.safe_load(printed)
        assert config["recipe"]["warmup"]["init_args"]["training"]["lr"] == 1e-4
        assert config["recipe"]["warmup"]["init_args"]["training"]["betas"] == [0.9, 0.999], "defaults are shown"
        Path("printed.yaml").write_text(printed)
        assert [step.key for step in steps_of("--config", "printed.yaml")] == [
            step.key for step in steps_of("--config", "iter1.yaml")
        ], "what is printed is a recipe file"


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

    def test_a_finished_stage_is_topped_up(self, mistake: Mistake, recipe: Recipe) -> None:
        """As long as nobody has read it; what there was stays, and what is added comes from later prompts."""
        settings = {
            "num_examples": 6,
            "samples_per_prompt": 2,
            "prompts_per_round": 2,
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
        asked = {"class_path": "Answer", "init_args": {"instructions": "data", "student": "base"}}
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
            "recipe__later": {"class_path": "RecordedExamples", "init_args": {"source": "classroom/seeds[:8]"}},
        }
        said = mistake("--config", recipe(**stages))
        assert said == "iteration_1/breaks waits for mended"
        assert "StageError" in Path("run/error.log").read_text(), "the traceback is kept"
        before = contents(Path("run/iteration_1/recorded"))
        Path("mended").touch()
        main(["fit", "--config", "recipe.yaml", "--recipe.later.source", "classroom/seeds[:4]"])
        assert contents(Path("run/iteration_1/recorded")) == before
        assert len(Path("run/iteration_1/later/examples.jsonl").read_text().splitlines()) == 4

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
            for name in ("token_entropy", "opening_entropy", "distinct_share", "mean_max_rouge_l"):
                assert numbers[name] == summary["data"][key]["diversity"][name] > 0
            assert re.search(
                rf"{key}: done in .* \(mean {numbers['mean']:.3g}, positive {numbers['positive_share']:.0%} of \d+; "
                rf"entropy of words {numbers['token_entropy']:.2f}, of first words {numbers['opening_entropy']:.2f}; "
                rf"reference loss {numbers['reference_loss']:.3f}\)",
                printed,
            )
        for student, data in (("warmup", "warmup_data"), ("trained", "training_data")):
            breadth = summary["data"][f"iteration_1/{data}"]["diversity"]
            assert summary["students"][student]["data_token_entropy"] == breadth["token_entropy"]
        assert not [name for name in summary["students"]["base"] if name.startswith("data_")]
        assert summary["training"]["iteration_1/warmup"]["steps"] == 6, "24 examples by 8, twice"
        assert len(summary["stages"]) == 14
        assert all(stage["finished"] and stage["seconds"] >= 0 for stage in summary["stages"].values())
        assert summary["stages"]["iteration_1/training_data"]["seconds"] > 0
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
        entries = Workspace(run).entries
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
