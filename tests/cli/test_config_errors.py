"""Every mistake is one clear sentence on the standard error, exit status 2, and nothing written over."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recipe_files import SHIPPED, Mistake, Recipe, contents
from tiny_models import save_tiny_model

import callbacks
from montessori_pl import renames, stages
from montessori_pl.__main__ import main as door
from montessori_pl.batches.sources import DataSources
from montessori_pl.classroom import version
from montessori_pl.cli.fit import main
from montessori_pl.config_errors import sentence
from montessori_pl.evaluation import ExactMatch
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.loading import ModelSource
from montessori_pl.signals import ScalarSignal
from montessori_pl.synthesis.collapse import CollapseLimits


class TestMistakes:
    """What a user can get wrong, each with the sentence that says so."""

    def test_misspelt_key(self, mistake: Mistake, recipe: Recipe) -> None:
        assert mistake("--config", recipe(iteratons=3)) == (
            "the recipe file has no key 'iteratons'; did you mean 'iterations'? there are: seed_everything, run, "
            "iterations, dry_run, gpus, preview, requeue, num_threads, student, teacher, teachers, trainer, "
            "generation, data, recipe"
        )
        assert not Path("run").exists()

    def test_misspelt_key_of_a_section(self, mistake: Mistake, recipe: Recipe) -> None:
        assert (
            mistake("--config", recipe(trainer__devises=1)) == "trainer has no key 'devises'; did you mean 'devices'?"
        )
        said = mistake("--config", recipe(data__sed_tasks="x"))
        assert said == "data has no key 'sed_tasks'; did you mean 'seed_tasks'? there are: seed_tasks, reference, test"

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
            "chat_template, chat_template_kwargs, base_dtype, loss_on, trust_remote_code, "
            "attn_implementation"
        )
        assert mistake("--config", recipe(student__init_args__lora={"rank": 8})) == (
            "student.lora: LoraSettings has no setting 'rank'; there are: r, alpha, dropout, target_modules, layers"
        )

    def test_setting_that_had_another_name(self, mistake: Mistake, recipe: Recipe) -> None:
        assert mistake("--config", recipe(teacher__init_args__nll_weight=1.0)) == (
            "teacher: TeacherDPOModule has no setting 'nll_weight' any more; it is called 'sft_weight'"
        )
        assert mistake("--config", recipe(), "--teacher.nll_weight", "1") == (
            "teacher: TeacherDPOModule has no setting 'nll_weight' any more; it is called 'sft_weight'"
        )
        settings = {"pairs": "recorded", "training": {"lr": 1e-3}, "loss": "conservative"}
        assert mistake("--config", recipe(recipe__mine={"class_path": "AlignStudent", "init_args": settings})) == (
            "recipe.mine: AlignStudent has no setting 'loss' any more; it is called 'loss_type'; "
            "what was conservative is now sigmoid with a label_smoothing"
        )
        assert mistake("--config", recipe(data__seeds="classroom/seed_tasks")) == (
            "data has no key 'seeds' any more; it is called 'seed_tasks'"
        )
        settings = {"num_examples": 4, "unlike": ["recorded"]}
        assert mistake("--config", recipe(recipe__mine={"class_path": "Synthesize", "init_args": settings})) == (
            "recipe.mine: Synthesize has no setting 'unlike' any more; it is called 'deduplicate_against'"
        )

    def test_class_that_had_another_name(self, mistake: Mistake, recipe: Recipe) -> None:
        settings = {"examples": "recorded", "scores": "scores"}
        assert mistake("--config", recipe(recipe__mine={"class_path": "Pair", "init_args": settings})) == (
            "recipe.mine: there is no class 'Pair' any more; it is called 'BuildPreferences'"
        )
        path = "montessori_pl.stages.Pair"
        assert mistake("--config", recipe(recipe__mine={"class_path": path, "init_args": settings})) == (
            "recipe.mine: module montessori_pl.stages has no class 'Pair' any more; it is called 'BuildPreferences'"
        )

    def test_new_names_exist_and_old_ones_do_not(self) -> None:
        """A name in the table that no class has, or that one has still, would mislead."""
        kinds = [
            *(getattr(stages, name) for name in stages.__all__ if not name.endswith("Error")),
            *(getattr(callbacks, name) for name in callbacks.__all__),
            *(DataSources, TeacherDPOModule, ModelSource, CollapseLimits, ExactMatch, ScalarSignal),
        ]
        known = {name for kind in kinds for name in inspect.signature(kind).parameters}
        assert set(renames.SETTINGS.values()) <= known
        assert set(renames.CLASSES.values()) <= {kind.__name__ for kind in kinds}
        assert not set(renames.CLASSES) & {kind.__name__ for kind in kinds}
        assert known & set(renames.SETTINGS) == {"loss"}, "which SelectTeacher has, and means a stage by it"

    def test_misspelt_class(self, mistake: Mistake, recipe: Recipe) -> None:
        said = mistake("--config", recipe(recipe__warmup={"class_path": "TrainStudnet"}))
        assert said.startswith(
            "recipe.warmup: there is no class 'TrainStudnet'; did you mean 'TrainStudent'? there are:"
        )
        assert said.endswith("a class of your own is given by its import path, MODULE.CLASS")
        signal = {"class_path": "callbacks.InfluenceProbeCalback"}
        score = {"class_path": "ScoreExamples", "init_args": {"examples": "recorded", "signal": signal}}
        assert mistake("--config", recipe(recipe__influence=score)) == (
            "recipe.influence.signal: module callbacks has no class 'InfluenceProbeCalback'; did you mean "
            "'InfluenceProbeCallback'? there are: GradientCosineSignal, IFDSignal, InfluenceDuringTraining, "
            "InfluenceProbeCallback, JudgeSignal, ProjectedGradientSignal, RandomSignal, RankSurprisalSignal, "
            "RecordedQualitySignal, ResponseLengthSignal, RewardModelSignal, SolveRateSignal, "
            "TrainingLossSignal"
        )

    def test_missing_module_of_a_plugin(self, mistake: Mistake, recipe: Recipe) -> None:
        assert mistake("--config", recipe(recipe__mine={"class_path": "nowhere_to_be_found.Mine"})) == (
            "recipe.mine: there is no module 'nowhere_to_be_found' to import a class from, or for a plugin that "
            "imports it; a file NAME.py in the working directory is imported as NAME"
        )

    def test_settings_beside_a_class_path(self, mistake: Mistake, recipe: Recipe) -> None:
        stage = {"class_path": "TrainStudent", "examples": "recorded", "training": {"lr": 1e-3}}
        assert mistake("--config", recipe(recipe__warmup=stage)) == (
            "recipe.warmup has 'examples', 'training' beside class_path; the settings of a stage stand under init_args"
        )
        signal = {"class_path": "callbacks.TrainingLossSignal", "direction": "low"}
        scores = {"class_path": "ScoreExamples", "init_args": {"examples": "recorded", "signal": signal}}
        said = mistake("--config", recipe(recipe__scores=scores))
        assert said.startswith("recipe.scores")
        assert "abstract" not in said

    @pytest.mark.parametrize(
        ("lines", "sentence"),
        [
            ("raise RuntimeError('no room')", "recipe.mine cannot be built: RuntimeError: no room"),
            ("{}['key']", "recipe.mine cannot be built: KeyError: 'key'"),
        ],
    )
    def test_plugin_that_fails_when_it_is_built(
        self, mistake: Mistake, recipe: Recipe, lines: str, sentence: str
    ) -> None:
        name = f"plugin_{abs(hash(lines))}"
        Path(f"{name}.py").write_text(
            "from montessori_pl.stages import RecordedExamples\n"
            "class Mine(RecordedExamples):\n"
            "    def __init__(self) -> None:\n"
            f"        {lines}\n"
        )
        assert mistake("--config", recipe(recipe__mine={"class_path": f"{name}.Mine"})) == sentence

    def test_plugin_that_is_no_stage_yet_or_no_python(self, mistake: Mistake, recipe: Recipe) -> None:
        Path("unfinished_plugin.py").write_text(
            "from montessori_pl.stages import Stage\nclass Mine(Stage):\n    def reads(self): return []\n"
        )
        assert mistake("--config", recipe(recipe__mine={"class_path": "unfinished_plugin.Mine"})) == (
            "recipe.mine: unfinished_plugin.Mine cannot be built: it lacks run"
        )
        Path("torn_plugin.py").write_text("class Mine(:\n")
        said = mistake("--config", recipe(recipe__mine={"class_path": "torn_plugin.Mine"}))
        assert "torn_plugin.py, line 1, is no Python: invalid syntax" in said

    def test_section_that_does_not_exist(self, mistake: Mistake, recipe: Recipe) -> None:
        said = mistake("--config", recipe(generations={"class_path": "TransformersBackend"}))
        assert said.startswith("the recipe file has no key 'generations'; did you mean 'generation'?")

    @pytest.mark.parametrize("more", [[], ["--dry_run"]])
    @pytest.mark.parametrize("run", ["taken", "taken/run"])
    def test_run_directory_that_cannot_be_made(
        self, mistake: Mistake, recipe: Recipe, run: str, more: list[str]
    ) -> None:
        Path("taken").write_text("mine")
        assert mistake("--config", recipe(run=run), *more) == (
            f"run: taken is a file, and {run} is to be a directory; choose another with --run"
        )
        assert Path("taken").read_text() == "mine"

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

    @pytest.mark.slow
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
            "recipe.written.guard: the guard's fallback_teacher cannot be 'latest', which is the teacher that is "
            "guarded; give 'base', or the stage that trained the teacher before alignment"
        )
        assert said(baseline="recorded", limits={"token_entropy": -1.0}) == (
            "recipe.written.guard.limits.token_entropy: expected float >= 0 and <= 1, found -1.0"
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
            f"error: the command is fit, init, compare, report, export or verify{found}; "
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

    @pytest.mark.parametrize(
        ("evaluators", "asked"),
        [(["ExactMatch"], "evaluation"), (["ResponseLoss"], "")],
    )
    def test_endpoint_is_asked_for_what_the_run_trains(
        self, mistake: Mistake, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, evaluators: list[str], asked: str
    ) -> None:
        """Found out before anything is paid for; losses are measured without an engine."""
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        training = {"class_path": "TrainStudent", "init_args": {"examples": "written", "training": {"lr": 1e-3}}}
        evaluation = {"students": ["base", "trained"], "evaluators": [{"class_path": name} for name in evaluators]}
        stages = {
            "written": {"class_path": "Synthesize", "init_args": {"num_examples": 4}},
            "trained": training,
            "evaluation": {"class_path": "Evaluate", "init_args": evaluation},
        }
        said = mistake("--config", recipe(generation={"class_path": "OpenAIBackend"}, recipe=stages))
        if asked:
            assert said == (
                "recipe.evaluation asks a model that the run trains, and OpenAIBackend cannot load its weights; name "
                "an engine that loads weights in the section generation, and use the endpoint for a teacher of the "
                "section teachers"
            )
        else:
            assert said.startswith("generation: the environment variable OPENAI_API_KEY is not set; put")
        assert not Path("run").exists()

    @pytest.mark.slow
    def test_endpoint_of_a_later_stage_without_a_key(
        self, mistake: Mistake, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A dry run needs none."""
        monkeypatch.delenv("MY_KEY", raising=False)
        engine = {"class_path": "OpenAIBackend", "init_args": {"api_key_env": "MY_KEY"}}
        written = {"class_path": "Synthesize", "init_args": {"num_examples": 4, "teacher": "strong"}}
        config = recipe(teachers={"strong": {"backbone": "a-model", "generation": engine}}, recipe__written=written)
        assert mistake("--config", config).startswith("teachers.strong: the environment variable MY_KEY is not set; ")
        assert not Path("run").exists()
        main(["fit", "--config", config, "--dry_run"])
        assert "written" in capsys.readouterr().out
        nobody = recipe(teachers={"strong": {"backbone": "a-model", "generation": engine}})
        main(["fit", "--config", nobody])  # the same teacher, whom no stage asks

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("synthesizer", "what"),
        [
            ({"class_path": "Magpie"}, "an empty user turn"),
            (
                {"class_path": "SelfInstruct", "init_args": {"answer_format": "prefilled_tags"}},
                "a turn that begins with",
            ),
            ({"class_path": "SelfInstruct", "init_args": {"answer_format": "numbered_list"}}, "a text without a chat"),
            ({"class_path": "SelfInstruct", "init_args": {"answer_format": "whole_completion"}}, ""),
        ],
    )
    @pytest.mark.parametrize("stage", ["Synthesize", "Augment"])
    def test_endpoint_is_asked_to_go_on_with_a_turn(
        self,
        mistake: Mistake,
        recipe: Recipe,
        capsys: pytest.CaptureFixture[str],
        synthesizer: dict[str, Any],
        what: str,
        stage: str,
    ) -> None:
        """An endpoint takes whole user turns alone; a dry run says so, too."""
        settings = {"num_examples": 4, "teacher": "strong", "synthesizer": synthesizer}
        written = {
            "class_path": stage,
            "init_args": settings | ({"examples": "recorded"} if stage == "Augment" else {}),
        }
        teachers = {"strong": {"backbone": "a-model", "generation": {"class_path": "OpenAIBackend"}}}
        arguments = "--config", recipe(teachers=teachers, recipe__written=written), "--dry_run"
        if what:
            said = mistake(*arguments)
            assert said.startswith(f"recipe.written: the synthesizer lets the teacher go on with {what}")
            assert said.endswith("or an engine that takes tokens, such as TransformersBackend")
        else:
            main(["fit", *arguments])
            assert "written" in capsys.readouterr().out

    @pytest.mark.parametrize("stage", ["judgements", "evaluation"])
    def test_judge_at_an_endpoint_without_a_key(
        self, mistake: Mistake, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, stage: str
    ) -> None:
        """Found out before the stages in front of it have run."""
        monkeypatch.delenv("MY_KEY", raising=False)
        engine = {"class_path": "OpenAIBackend", "init_args": {"api_key_env": "MY_KEY"}}
        judge = {"judge": {"backbone": "a-model"}, "engine": engine}
        signal = {"class_path": "callbacks.JudgeSignal", "init_args": judge}
        evaluators = [{"class_path": "WinRate", "init_args": judge}]
        stages = {
            "judgements": {"class_path": "ScoreExamples", "init_args": {"examples": "recorded", "signal": signal}},
            "evaluation": {"class_path": "Evaluate", "init_args": {"students": ["base"], "evaluators": evaluators}},
        }
        said = mistake("--config", recipe(**{f"recipe__{stage}": stages[stage]}))
        assert said.startswith(f"recipe.{stage}: the environment variable MY_KEY is not set; ")
        assert not Path("run").exists()

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
        said = mistake("--config", recipe(data__seed_tasks="classroom/sedes"))
        assert said.startswith("data.seed_tasks: unknown name 'classroom/sedes': the classroom has classroom/teacher, ")

    def test_chat_template_that_refuses_an_example(self, mistake: Mistake, recipe: Recipe, tmp_path: Path) -> None:
        """It would be seen after the training; a recorded source and a reference set are looked at alike."""
        backbone = Path(save_tiny_model(tmp_path / "student"))
        template = backbone / "chat_template.jinja"
        refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        template.write_text(refusal + template.read_text())
        source = Path("brief.jsonl")
        source.write_text('{"id": "r1", "system": "be brief", "instruction": "why?", "response": "so."}\n')
        said = "refuses a conversation with the turns system, user, assistant: no system turn; move the system messages"
        student = {"student__init_args__backbone": str(backbone)}
        sentence = mistake("--config", recipe(**student, data__reference=str(source)))
        assert sentence.startswith("student: data.reference, example r1: the chat template of ")
        assert said in sentence
        sentence = mistake("--config", recipe(**student, recipe__recorded__init_args__source=str(source)))
        assert sentence.startswith("student: recipe.recorded.source, example r1: the chat template of ")
        assert not Path("run").exists()

    def test_missing_model_is_found_before_anything_runs(self, mistake: Mistake, recipe: Recipe) -> None:
        """Otherwise the first stage would be pinned to a backbone that does not exist."""
        stage = {"class_path": "GenerateResponses", "init_args": {"instructions": "recorded", "teachers": "latest"}}
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
        assert said == "'recorded' is a stage of the recipe and a teacher of the section teachers; rename one of them"

    def test_the_teacher_is_needed_only_where_it_is_asked(self, mistake: Mistake, recipe: Recipe) -> None:
        pool = {"anna": {"backbone": "classroom/teacher"}}
        arguments = {"instructions": "recorded", "teachers": "latest", "sampling": {"max_tokens": 8}}
        stage = {"class_path": "GenerateResponses", "init_args": arguments}
        said = mistake("--config", recipe(teacher=None, teachers=pool, recipe__more=stage))
        assert said == "recipe.more asks the teacher, and the recipe file has no section `teacher`"
        arguments["teachers"] = "anna"
        main(["fit", "--config", recipe(teacher=None, teachers=pool, recipe__more=stage)])

    def test_teacher_that_is_not_in_the_pool(self, mistake: Mistake, recipe: Recipe) -> None:
        stage = {"class_path": "GenerateResponses", "init_args": {"instructions": "recorded", "teachers": "ann"}}
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
        assert mistake("--config", recipe(data__seed_tasks="seeds.jsonl")) == (
            "data.seed_tasks: no row to read in seeds.jsonl: it has 0 rows; correct the file or the slice"
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

    def test_several_turns_that_the_template_rewrites(self, mistake: Mistake, recipe: Recipe) -> None:
        """This one forgets earlier answers, as templates do with what a model has thought."""
        Path("forgets.jinja").write_text(
            "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }}{{ eos_token }}{% endif %}"
            "{% endfor %}"
        )
        Path("turns.jsonl").write_text(json.dumps({"data": ["say a", "a", "say b", "b"]}) + "\n")
        said = mistake(
            *("--config", recipe(data__reference="turns.jsonl", student__init_args__chat_template="forgets.jinja"))
        )
        assert re.match(
            r"student: data\.reference, example \w+: this chat template rewrites earlier turns when the conversation",
            said,
        )
        assert not Path("run").exists()

    def test_recorded_examples_that_are_not_there(self, mistake: Mistake, recipe: Recipe) -> None:
        stage = {"class_path": "RecordedExamples", "init_args": {"source": "nowhere.csv"}}
        said = mistake("--config", recipe(recipe__recorded=stage))
        assert said.startswith("recipe.recorded: source: no file nowhere.csv; ")
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
        assert mistake("--config", "recipe.yaml", "--recipe.recorded.source", "classroom/seed_tasks[:4]") == (
            "stage iteration_1/recorded of run has finished under other settings (recipe.recorded.init_args.source: "
            f"'classroom/seed_tasks[:8] (version {version()})' then, "
            f"'classroom/seed_tasks[:4] (version {version()})' now); "
            "restore them, start another run with --run DIR, "
            "or delete run/iteration_1/recorded to do the stage again"
        )
        assert contents(Path("run")) == before

    def test_two_runs_on_one_directory(self, mistake: Mistake, recipe: Recipe) -> None:
        main(["fit", "--config", recipe()])
        program = (
            "import sys; from pathlib import Path; from montessori_pl.run_directory.run_directory import RunDirectory\n"
            "with RunDirectory(Path('run')).locked(): print('locked', flush=True); sys.stdin.read()"
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

    @pytest.mark.slow
    def test_damaged_finished_run(self, mistake: Mistake, recipe: Recipe) -> None:
        """Nothing is left to do, and yet each file that the stage has left is looked at; a dry run looks as well."""
        main(["fit", "--config", recipe()])
        before, directory = contents(Path("run")), Path("run/iteration_1/recorded")
        for name in ("examples.jsonl", "metrics.json"):
            path, whole = directory / name, (directory / name).read_bytes()
            again = f"restore the file, or delete {directory} to do the stage again"
            for content in (whole + b"\n", whole[:-1], b"x" + whole[1:], b""):
                path.write_bytes(content)
                said = f"{path} is not what stage iteration_1/recorded wrote; {again}"
                assert mistake("--config", "recipe.yaml") == said
            assert mistake("--config", "recipe.yaml", "--dry_run") == said
            path.unlink()
            assert mistake("--config", "recipe.yaml") == f"{path} is missing; {again}"
            path.write_bytes(whole)
        main(["fit", "--config", "recipe.yaml"])
        after = contents(Path("run"))
        assert {name for name in before if before[name] != after[name]} == {"manifest.json"}, "it knows new times"

    def test_linked_stage(self, mistake: Mistake, recipe: Recipe) -> None:
        main(["fit", "--config", recipe()])
        Path("run/iteration_1/recorded").rename("elsewhere")
        Path("run/iteration_1/recorded").symlink_to(Path("elsewhere").absolute())
        assert mistake("--config", "recipe.yaml") == (
            "run/iteration_1/recorded is a link, and what a run has written may lie in its own directory only; put the "
            "directory itself there (the whole run directory may be a link), or delete the link to do the stage again"
        )

    def test_words_of_jsonargparse_that_nobody_expected_are_passed_on(self) -> None:
        assert sentence('Parser key "run":\n  Something   quite\n  else') == "run: Something quite else"
