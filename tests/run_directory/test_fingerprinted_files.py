"""A file that a setting names is part of the setting: one that is edited in the middle of a run is noticed."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from montessori_pl.batches.sources import DataSources
from montessori_pl.cli.fit import MontessoriCLI, main
from montessori_pl.config_errors import SentenceParser
from montessori_pl.data.template_text import CHAT_TEMPLATES
from montessori_pl.generation.pool_teacher import PoolTeacher
from montessori_pl.run_directory.fingerprint import UNKNOWN, common_file, pinned, same, with_content
from montessori_pl.run_directory.run_directory import RunDirectory, RunDirectoryError

Settings = dict[str, Any]
REQUEST, JUDGE_PROMPT = "Write one more.\n{shots}", "{instruction} {response} {answer_a} {answer_b} The end."


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a file of each kind; `main` puts it on the import path, which is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("ask.txt").write_text(REQUEST)
    Path("judge.txt").write_text(JUDGE_PROMPT)
    shutil.copy(CHAT_TEMPLATES["plain"], "mine.jinja")
    rows = [{"instruction": f"say {n}", "response": str(n)} for n in range(12)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def of(class_path: str, **settings: Any) -> Settings:
    return {"class_path": class_path, "init_args": settings}


def write_recipe(stages: Settings, changes: Settings) -> list[str]:
    """Write a recipe of these stages, the first of which reads recorded examples; returns its arguments."""
    config = {
        "run": "run",
        "num_threads": 1,
        "student": of("StudentModule", backbone="classroom/student"),
        "teacher": of("TeacherDPOModule", backbone="classroom/teacher"),
        "generation": of("TransformersBackend"),
        "data": {role: f"classroom/{role}[:8]" for role in ("seed_tasks", "reference", "test")},
        "trainer": {"logger": False},
        **changes,
        "recipe": {"recorded": of("RecordedExamples", source="classroom/seed_tasks[:8]"), **stages},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return ["fit", "--config", "recipe.yaml"]


def settings_of(arguments: list[str]) -> dict[str, Settings]:
    """What each stage of a recipe is pinned to, without running any."""

    class Reader(MontessoriCLI):
        found: dict[str, Settings]

        def fit(self) -> None:
            self.found = self._settings()

    cli = Reader(
        args=arguments,
        parser_class=SentenceParser,
        seed_everything_default=42,
        save_config_callback=None,
        auto_configure_optimizers=False,
    )
    return cli.found


def edit(path: Path) -> None:
    """Change a file in a way that it can still be read."""
    text = path.read_text()
    path.write_text(text + "\n" if path.suffix == ".txt" else text + "{# edited #}")


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which a command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(arguments)
    return capsys.readouterr().err


SHORT: Settings = {"max_tokens": 40}
SMALL: Settings = {"num_examples": 4, "instruction_sampling": SHORT, "response_sampling": SHORT}
ASK = of("SelfInstruct", prompt="ask.txt")
JUDGE: Settings = {"backbone": "classroom/teacher", "chat_template": "mine.jinja"}
KINDS: list[tuple[str, str, Settings, Settings]] = [
    ("recipe.one.init_args.synthesizer.init_args.prompt", "ask.txt", of("Synthesize", **SMALL, synthesizer=ASK), {}),
    (
        "recipe.one.init_args.synthesizer.init_args.prompt",
        "ask.txt",
        of("Augment", examples="recorded", **SMALL, synthesizer=ASK),
        {},
    ),
    (
        "recipe.one.init_args.signal.init_args.prompt",
        "judge.txt",
        of(
            "ScoreExamples", examples="recorded", signal=of("callbacks.JudgeSignal", prompt="judge.txt", sampling=SHORT)
        ),
        {},
    ),
    (
        "recipe.one.init_args.signal.init_args.judge.chat_template",
        "mine.jinja",
        of(
            "ScoreExamples",
            examples="recorded",
            signal=of("callbacks.JudgeSignal", judge=JUDGE, prompt="judge.txt", sampling=SHORT),
        ),
        {},
    ),
    (
        "recipe.one.init_args.evaluators[1].init_args.prompt",
        "judge.txt",
        of(
            "Evaluate",
            students=["base"],
            evaluators=[of("ResponseLoss"), of("WinRate", judge=JUDGE, prompt="judge.txt", max_tokens=40)],
        ),
        {},
    ),
    (
        "recipe.one.init_args.evaluators[0].init_args.judge.chat_template",
        "mine.jinja",
        of("Evaluate", students=["base"], evaluators=[of("WinRate", judge=JUDGE, max_tokens=40)]),
        {},
    ),
    (
        "student.init_args.chat_template",
        "mine.jinja",
        of("GenerateResponses", instructions="recorded", student="base", sampling=SHORT),
        {"student": of("StudentModule", backbone="classroom/student", chat_template="mine.jinja")},
    ),
    (
        "teacher.init_args.chat_template",
        "mine.jinja",
        of("GenerateResponses", instructions="recorded", teachers="base", sampling=SHORT),
        {"teacher": of("TeacherDPOModule", backbone="classroom/teacher", chat_template="mine.jinja")},
    ),
    (
        "teachers.other.chat_template",
        "mine.jinja",
        of("GenerateResponses", instructions="recorded", teachers="other", sampling=SHORT),
        {"teachers": {"other": JUDGE}},
    ),
    (
        "data.reference",
        "mine.jsonl[:4]",
        of("Evaluate", students=["base"], evaluators=[of("ResponseLoss")]),
        {"data": {"seed_tasks": "classroom/seed_tasks", "reference": "mine.jsonl[:4]"}},
    ),
    ("recipe.one.init_args.source", "mine.jsonl", of("RecordedExamples", source="mine.jsonl"), {}),
]
"""Settings, each with what it says, the stage that has begun, and other changes of the recipe."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "name", "stage", "changes"), KINDS, ids=[f"{stage['class_path']}-{name}" for name, _, stage, _ in KINDS]
)
def test_edited_in_the_middle_of_a_run(
    setting: str, name: str, stage: Settings, changes: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = write_recipe({"one": stage}, changes)
    settings, run_directory = settings_of(arguments)["one"], RunDirectory(Path("run"))
    with run_directory.locked():
        run_directory.begin("iteration_1/one", settings, {})
    RunDirectory(Path("run")).check("iteration_1/one", settings_of(arguments)["one"])

    path = Path(name.partition("[")[0])
    if path.suffix == ".jsonl":
        path.write_text(path.read_text().replace("say 2", "tell 2"))
    else:
        edit(path)
    assert said(arguments, capsys) == (
        f"error: stage iteration_1/one of run has begun under other settings ({setting}: the content of "
        f"{name!r} has changed); restore them, start another run with --run DIR, or delete run/iteration_1/one to do "
        "the stage again\nthe traceback is in run/error.log\n"
    )
    with pytest.raises(RunDirectoryError, match="has changed"):
        run_directory.check("iteration_1/one", settings_of(arguments)["one"])


def test_run_from_before_contents_were_pinned(capsys: pytest.CaptureFixture[str]) -> None:
    """It knows the path alone, and what the file held then is not known."""
    arguments = write_recipe(
        {"one": of("GenerateResponses", instructions="recorded", student="base", sampling=SHORT)},
        {"student": of("StudentModule", backbone="classroom/student", chat_template="mine.jinja")},
    )
    text = json.dumps(settings_of(arguments)["one"])
    content = re.findall(r"mine\.jinja( \(content [0-9a-f]{12}\))", text)
    assert len(content) == 1
    run_directory = RunDirectory(Path("run"))
    with run_directory.locked():
        run_directory.begin("iteration_1/one", json.loads(text.replace(content[0], "")), {})
    assert said(arguments, capsys).startswith(
        "error: stage iteration_1/one of run has begun under other settings "
        f"(student.init_args.chat_template: 'mine.jinja' then, 'mine.jinja{content[0]}' now); restore them, "
        "start another run"
    )


class TestWholeRuns:
    """The program itself, with examples that were recorded: from `mine.jsonl`, in the first of two stages."""

    @pytest.fixture
    def arguments(self) -> list[str]:
        arguments = write_recipe({"again": of("ConcatExamples", examples=["recorded"])}, {})
        return [*arguments, "--recipe.recorded.source", "mine.jsonl"]

    def test_nothing_has_changed(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also where the same directory is called otherwise, and the file was written again."""
        main(arguments)
        Path("mine.jsonl").write_text(Path("mine.jsonl").read_text())
        capsys.readouterr()
        main(arguments)
        assert "nothing was left to do" in capsys.readouterr().out
        elsewhere = Path("elsewhere").absolute()
        elsewhere.mkdir()
        for name in ("run", "recipe.yaml", "mine.jsonl"):
            Path(name).rename(elsewhere / name)
        monkeypatch.chdir(elsewhere)
        main(arguments)
        assert "nothing was left to do" in capsys.readouterr().out

    @pytest.mark.slow
    def test_edited(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        main(arguments)
        Path("mine.jsonl").write_text(Path("mine.jsonl").read_text().replace("say 7", "say seven"))
        for more in ([], ["--dry_run"]):
            assert (
                "has finished under other settings (recipe.recorded.init_args.source: the content of 'mine.jsonl' has"
                in said(arguments + more, capsys)
            )
        shutil.rmtree("run/iteration_1/recorded")
        assert "stage iteration_1/again of run has finished with other inputs" in said(arguments, capsys)
        shutil.rmtree("run/iteration_1/again")
        main(arguments)
        assert "say seven" in Path("run/iteration_1/again/examples.jsonl").read_text()

    @pytest.mark.slow
    def test_not_there(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """Before the stage, the file is missing; after it, nobody needs the file any more."""
        text = Path("mine.jsonl").read_text()
        Path("mine.jsonl").unlink()
        assert "no file mine.jsonl" in said(arguments, capsys)
        Path("mine.jsonl").write_text(text)
        main(arguments)
        shutil.rmtree("run/iteration_1/again")
        Path("mine.jsonl").unlink()
        main(arguments)
        assert RunDirectory(Path("run")).finished("iteration_1/again")


class TestPinned:
    def test_words_that_are_no_files(self) -> None:
        """Also if the working directory holds files of these names."""
        for name in ("auto", "plain", "self_instruct", "additive", "mine.txt"):
            Path(name).write_text("{shots}")
        chats = [pinned({"chat_template": chat_template}, kind=PoolTeacher) for chat_template in ("auto", "plain")]
        assert chats == [{"chat_template": "auto"}, {"chat_template": "plain"}]
        for settings in (
            of("montessori_pl.synthesis.base.SelfInstruct", prompt="self_instruct"),
            of("callbacks.JudgeSignal", prompt="additive", judge=None),
            of("callbacks.JudgeSignal", judge={"backbone": "b"}),
            of("montessori_pl.stages.RecordedExamples", source="classroom/seed_tasks[:3]"),
            {"class_path": "montessori_pl.stages.RecordedExamples"},
        ):
            assert pinned(settings) == settings
        classroom = {"seed_tasks": "classroom/seed_tasks", "reference": "classroom@3/reference[:3]", "test": None}
        assert pinned(classroom, kind=DataSources) == classroom

    def test_plugin_that_names_a_file(self) -> None:
        """As CONTRIBUTING shows it: every value is a path."""
        Path("plugins_with_files.py").write_text(
            "from pathlib import Path\n\nclass Reads:\n    files = {'prompt': Path}\n"
        )
        sys.path.insert(0, str(Path.cwd()))
        settings = of("plugins_with_files.Reads", prompt="ask.txt")
        assert pinned(settings)["init_args"] == {"prompt": with_content("ask.txt", Path("ask.txt"))}

    def test_other_settings_stay(self) -> None:
        """A router's own encoder has a layout of its own; a price decides nothing."""
        settings = of("montessori_pl.stages.TrainRouter", encoder="here", encoder_chat="mine.jinja")
        expected = with_content("mine.jinja", Path("mine.jinja"))
        assert pinned(settings)["init_args"] == {"encoder": "here", "encoder_chat": expected}
        member = {
            "backbone": "b",
            "chat_template": "mine.jinja",
            "price": {"input": 1.0, "output": 2.0},
            "license": "MIT",
        }
        assert pinned(member, kind=PoolTeacher) == {"backbone": "b", "chat_template": expected}
        assert member["chat_template"] == "mine.jinja", "the settings themselves are not changed"


class TestContents:
    def test_same_content_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = with_content("ask.txt", Path("ask.txt"))
        assert re.fullmatch(r"ask\.txt \(content [0-9a-f]{12}\)", before)
        Path("sub").mkdir()
        shutil.copy("ask.txt", "sub/copy.txt")
        assert with_content("ask.txt", Path("sub/copy.txt")) == before
        assert with_content("ask.txt", Path("sub/copy.txt").absolute()) == before
        edit(Path("sub/copy.txt"))
        assert with_content("ask.txt", Path("sub/copy.txt")) != before
        assert with_content("ask.txt", Path("nowhere.txt")) == f"ask.txt (content {UNKNOWN})"

    def test_saved_dataset(self) -> None:
        """All its files count, but not what the library keeps beside them for whoever has worked with it."""
        datasets.Dataset.from_list([{"instruction": "a", "response": "b"}]).save_to_disk("saved")
        before = with_content("saved", Path("saved"))
        Path("saved/cache-0123456789abcdef.arrow").write_text("filtered")
        assert with_content("saved", Path("saved")) == before
        shutil.copytree("saved", "copy")
        assert with_content("saved", Path("copy")) == before
        Path("copy/state.json").rename("copy/other.json")
        assert with_content("saved", Path("copy")) != before

    def test_comparison(self) -> None:
        one, other = "a b.txt (content 0123456789ab)", "a b.txt (content 0123456789ac)"
        gone = f"a b.txt (content {UNKNOWN})"
        assert same(one, one)
        assert same(3, 3)
        assert same(one, gone)
        assert same(gone, other)
        assert not same(one, other)
        assert common_file(one, other) == "a b.txt"
        for different in ("b.txt (content 0123456789ab)", "a b.txt", None, 3):
            assert not same(one, different)
            assert not same(gone, different)
            assert common_file(one, different) is None
