"""What the documentation says is what the program does: blocks and commands are run, settings have their sentence.

What is run, and how:

* `yaml` that begins with `# recipe: complete` is a whole recipe; other `yaml` stands above `iter1.yaml`, as a second
  `--config` would. Both go through the parser of the real command line, which builds every stage.
* `python` is executed in a namespace of its own.
* `console` and `sh`: the quick commands are run; a `fit` that would train is parsed, and its recipe resolved.
* `text`, `json`, `jsonl` and `markdown` are shown and not run.

Beside the commands of a page lie the whole recipes of all pages, under the name in their first lines
(`# python ... --config NAME`), and the page's Python as `my_plugins.py`, which is how pages call a reader's plugins.
"""

import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import docstring_parser
import pytest
import yaml
from markdown_blocks import Block, PageError, commands, indented_code, inline_commands, read_blocks

from montessori_pl.__main__ import BESIDE, main
from montessori_pl.cli.fit import MontessoriCLI
from montessori_pl.cli.recipe_files import find_configs
from montessori_pl.config_errors import ConfigError, SentenceParser
from montessori_pl.pipeline.recipe import Step, resolve_recipe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs" / "hooks"))
import plugin_settings  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = ("text", "json", "jsonl", "markdown")
"""Languages that nobody runs."""
COMPLETE = "# recipe: complete"
SHELLS = ("sh", "bash")
READERS_OWN = ("recipe.yaml", "my_recipe.yaml")
"""Recipe files that pages speak of and that only the reader has."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def blocks_of(page: Path) -> list[Block]:
    return read_blocks(page)


def every_block() -> Iterator[Any]:
    """A parameter for each block that is run, and a skipped one for each that says why not."""
    for page in PAGES:
        for block in blocks_of(page):
            if block.language in SHOWN:
                continue
            marks = [pytest.mark.skip(reason=block.not_run)] if block.not_run is not None else []
            yield pytest.param(page, block, id=f"{name_of(page)}:{block.line}", marks=marks)


def every_command_not_run() -> Iterator[Any]:
    """The `fit` commands of blocks that are not run; whether their options exist is known all the same."""
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "console" and block.not_run is not None:
                for command in commands(block.code):
                    if "montessori_pl fit" in command and "$" not in command:
                        yield pytest.param(page, command, id=f"{name_of(page)}:{block.line}:{command}")


def every_inline_command() -> Iterator[Any]:
    for page in PAGES:
        for line, command in inline_commands(page):
            yield pytest.param(command, id=f"{name_of(page)}:{line}")


class Parsed(MontessoriCLI):
    """The real command line up to the point where a run would begin."""

    def fit(self) -> None:
        return

    def steps(self) -> list[Step]:
        recipe, pool = self._get(self.config_init, "recipe"), self._get(self.config_init, "teachers")
        return resolve_recipe(recipe, self._get(self.config, "iterations"), pool)


def parse(*arguments: str) -> Parsed:
    """Parse `fit` with these arguments, and build all that the recipe names.

    Raises:
        ValueError: the sentence with which `fit` would end.
    """
    return Parsed(
        args=["fit", *arguments],
        parser_class=SentenceParser,
        parser_kwargs={"allow_abbrev": False},
        seed_everything_default=42,
        save_config_callback=None,
        auto_configure_optimizers=False,
    )


@pytest.fixture(scope="session")
def finished_run(tiny_recipe: Callable[..., Path]) -> Path:
    """The directory of a small run that has finished."""
    recipe = tiny_recipe()
    main(["fit", "--config", str(recipe)])
    return recipe.parent / "run"


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Go to an empty directory and write the files that a page shows, as its reader would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("COLUMNS", "120")

    def write(page: Path) -> None:
        shown = [block.code for block in blocks_of(page) if block.language == "python" and block.not_run is None]
        Path("my_plugins.py").write_text("".join(shown))
        for block in (block for one in PAGES for block in blocks_of(one)):
            if named := re.match(COMPLETE + r"\n# python .*--config (\S+)\n", block.code):
                Path(named[1]).write_text(block.code)

    yield write
    sys.modules.pop("my_plugins", None)  # the next page has others


@pytest.fixture
def run_command(request: pytest.FixtureRequest, beside: Callable[[Path], None]) -> Callable[[str], None]:
    """Run a command as a reader types it, or what of it takes seconds."""

    def run(command: str) -> None:
        words = shlex.split(command, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        match words:
            case ["make", *targets]:
                check_targets(targets)
            case ["pip", "install", *packages] | ["python", "-m", "pip", "install", *packages]:
                check_extras(packages)
            case ["python", script, *options] if script.startswith(("examples/", "benchmarks/")):
                check_script(script, options)
            case ["python", "-m", "montessori_pl", *arguments] | ["montessori-pl", *arguments]:
                run_ours(arguments, lambda: request.getfixturevalue("finished_run"))
            case ["srun" | "nohup", *_] if "montessori_pl" in words:
                run(shlex.join(words[words.index("montessori_pl") - 2 :]))
            case _:
                pytest.fail(f"nobody knows how to test {command!r}; mark its block <!-- not run: REASON -->")

    return run


def run_ours(arguments: list[str], finished_run: Callable[[], Path]) -> None:
    """A command of the program: the quick ones as they are, and of a `fit` that would train what comes before."""
    options = {"--help", "--print_config", "--dry_run"}
    if arguments[0] in BESIDE and "--help" not in arguments:
        arguments = with_runs(arguments, finished_run())
    elif not options & set(arguments):
        parse(*find_configs(arguments)[1:]).steps()
        return
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, f"{shlex.join(arguments)} ends with {end.code}"  # noqa: PT017


def with_runs(arguments: list[str], finished: Path) -> list[str]:
    """Copy the finished run to every place that the arguments name; `*` stands for three of them.

    Each copy has a seed of its own, and those of one argument are runs of the same settings.
    """
    given, rest = arguments[:1], iter(enumerate(arguments[1:], start=1))
    for number, word in rest:
        if word.startswith("--"):
            given += [word] if "=" in word else [word, next(rest)[1]]
            continue
        name, equals, pattern = word.rpartition("=")
        for seed in (1, 2, 3) if "*" in pattern else (number,):
            directory = Path(pattern.replace("*", str(seed)))
            if not directory.exists():
                copy_run(finished, directory, {"seed_everything": seed, "argument": number})
            given.append(f"{name}{equals}{directory}")
    return given


def copy_run(finished: Path, directory: Path, settings: dict[str, int]) -> None:
    """A run that another command line could have made: the same but for these settings."""
    shutil.copytree(finished, directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    for stage in manifest["stages"].values():
        assert "seed_everything" in stage["settings"]
        stage["settings"] |= settings
    (directory / "manifest.json").write_text(json.dumps(manifest))


def check_targets(targets: list[str]) -> None:
    """Every target of `make` exists; what it does takes minutes, and CI does it."""
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {target for target in targets if "=" not in target} <= set(known)


def check_extras(packages: list[str]) -> None:
    """Every extra of ours exists; nothing is installed."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in re.findall(r"(?:\.|montessori-pl)\[([\w,-]+)\]", " ".join(packages)):
        assert set(extras.split(",")) <= set(known)


def check_script(script: str, options: list[str]) -> None:
    """The script exists and has these options."""
    text = (ROOT / script).read_text()
    for option in options:
        assert not option.startswith("--") or f'"{option.partition("=")[0]}"' in text, f"{script} has no {option}"


def check_yaml(block: Block) -> None:
    """A whole recipe is parsed and resolved; a part of one is parsed above `iter1.yaml`."""
    Path("block.yaml").write_text(block.code)
    if block.code.startswith(COMPLETE):
        parse("--config", "block.yaml").steps()
        return
    known = {setting.name for setting in plugin_settings.top_level()}
    sections = yaml.safe_load(block.code)
    assert isinstance(sections, dict), "a part of a recipe begins with its sections"
    assert set(sections) <= known, f"a part of a recipe begins with sections of it: {', '.join(sorted(known))}"
    parse(*find_configs(["--config", "iter1.yaml", "--config", "block.yaml"]))


class TestPages:
    """Every block and command of README.md, CONTRIBUTING.md and docs/."""

    @pytest.mark.parametrize("page", PAGES, ids=name_of)
    def test_blocks_are_fenced(self, page: Path) -> None:
        assert indented_code(page) == [], "lines of blocks that no test sees: fence them"

    @pytest.mark.parametrize("page", PAGES, ids=name_of)
    def test_languages_are_known(self, page: Path) -> None:
        for block in blocks_of(page):
            assert block.language in (*SHOWN, *SHELLS, "yaml", "python", "console"), f"line {block.line}"

    @pytest.mark.slow
    @pytest.mark.parametrize(("page", "block"), every_block())
    def test_block(
        self,
        page: Path,
        block: Block,
        beside: Callable[[Path], None],
        run_command: Callable[[str], None],
    ) -> None:
        beside(page)
        if block.language == "yaml":
            check_yaml(block)
        elif block.language == "python":
            exec(compile(block.code, f"{name_of(page)}:{block.line}", "exec"), {"__name__": "shown"})
        elif block.language == "console":
            found = commands(block.code)
            assert found, "a console shows at least one command, behind `$ `"
            for command in found:
                run_command(command)
        else:
            subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
            joined = re.sub(r"\\\n\s*", "", block.code)
            for command in (line for line in joined.splitlines() if "montessori_pl" in line and line[:1] != "#"):
                run_command(command)

    @pytest.mark.slow
    @pytest.mark.parametrize(("page", "command"), every_command_not_run())
    def test_options_of_what_is_not_run(self, page: Path, command: str, beside: Callable[[Path], None]) -> None:
        beside(page)
        words = shlex.split(command, comments=True)
        arguments = words[words.index("fit") + 1 :]
        try:
            found = find_configs(arguments)
        except ValueError as error:
            if not any(f"no recipe file '{name}'" in str(error) for name in READERS_OWN):
                raise
            pytest.skip("the recipe is the reader's own")
        parse(*found)

    @pytest.mark.slow
    @pytest.mark.parametrize("command", every_inline_command())
    def test_inline_command(self, command: str, run_command: Callable[[str], None]) -> None:
        run_command(command)


class TestSettings:
    """The pages of settings are made from the classes."""

    @pytest.mark.parametrize("kind", plugin_settings.every_class(), ids=lambda kind: kind.__name__)
    def test_every_setting_has_a_sentence(self, kind: type) -> None:
        settings = plugin_settings.settings(kind)
        assert [setting.name for setting in settings if not setting.sentence] == []
        documented = {one.arg_name for one in docstring_parser.parse(inspect.getdoc(kind) or "").params}
        assert documented <= {setting.name for setting in settings}, "the docstring describes what is no setting"
        assert plugin_settings.about(kind), "the class has no sentence"

    @pytest.mark.slow
    def test_top_level_keys_have_a_sentence(self) -> None:
        settings = {setting.name: setting for setting in plugin_settings.top_level()}
        assert {"run", "iterations", "student", "teachers", "trainer", "recipe", "seed_everything"} <= set(settings)
        assert all(setting.sentence for setting in settings.values())
        assert settings["run"].default is plugin_settings.REQUIRED
        assert settings["iterations"].default == 1

    @pytest.mark.slow
    def test_every_plugin_of_ours_is_on_a_page(self) -> None:
        from settings_pages import pages

        made = pages()
        for page, name in {
            "stages": "Synthesize",
            "signals": "InfluenceProbeCallback",
            "engines": "OpenAIBackend",
            "evaluators": "WinRate",
            "synthesizers": "SelfInstruct",
            "trainer_callbacks": "InfluenceDuringTraining",
            "groups": "TrainingSettings",
        }.items():
            assert f"\n## {name}\n" in made[page]
        assert "\n## student\n" in made["recipe_file"]

    def test_when_a_setting_may_change(self) -> None:
        from montessori_pl.generation import OpenAIBackend
        from montessori_pl.models.dpo import TeacherDPOModule
        from montessori_pl.stages import Synthesize, TrainStudent

        def changes(kind: type) -> dict[str, str]:
            return {setting.name: setting.changes for setting in plugin_settings.settings(kind) if setting.changes}

        assert changes(Synthesize) == {
            "num_examples": "until another stage has read the result",
            "num_prompts": "until another stage has read the result",
            "max_candidates_per_example": "at any time",
            "patience": "at any time",
            "min_acceptance": "at any time",
        }
        assert changes(TrainStudent) == {
            "training": "`checkpoint_every_n_steps`, `activation_memory`, `gradient_checkpointing` at any time"
        }
        assert set(changes(OpenAIBackend)) == set(OpenAIBackend.fingerprint_excludes)
        assert set(changes(TeacherDPOModule)) == set(TeacherDPOModule.for_training)

    def test_setting_without_a_sentence_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Undescribed:
            """Something.

            Args:
                known: what it is.
            """

            def __init__(self, known: int, forgotten: int = 1) -> None: ...

        monkeypatch.setattr(plugin_settings, "SHIPPED", (__name__,))
        settings = plugin_settings.settings(Undescribed)
        assert {setting.name: setting.sentence for setting in settings} == {"known": "what it is.", "forgotten": ""}


class TestReading:
    """The rules that pages are held to are rules that a page can break."""

    @pytest.fixture
    def page(self, tmp_path: Path) -> Callable[[str], Path]:
        def write(text: str) -> Path:
            (tmp_path / "page.md").write_text(text)
            return tmp_path / "page.md"

        return write

    def test_blocks(self, page: Callable[[str], Path]) -> None:
        code = "- item\n\n    ```python\n    if x:\n        y\n    ```\n"
        first, second = read_blocks(page(f"# A\n\n{code}\n<!-- not run: slow -->\n```console\n$ b\n```\n"))
        assert first == Block(5, "python", "if x:\n    y\n")
        assert second == Block(11, "console", "$ b\n", not_run="slow")

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("```\nx\n```\n", "page.md:1: the block names no language"),
            ("```yaml\nx\n", "page.md:1: the block has no end"),
            ("a\n\n<!-- not run: -->\n```yaml\nx\n```\n", "page.md:3: a block that is not run needs a reason"),
            ("<!-- not run: slow -->\ntext\n", "page.md:2: <!-- not run: ... --> stands above something"),
        ],
    )
    def test_mistakes(self, page: Callable[[str], Path], text: str, sentence: str) -> None:
        with pytest.raises(PageError, match=re.escape(sentence)):
            read_blocks(page(text))

    @pytest.mark.parametrize(
        ("text", "lines"),
        [
            ("a\n\n    code\n", [3]),
            ("a\n    goes on\n", []),
            ("- a\n\n    goes on\n\n        code\n", [5]),
            ("1. a\n    goes on\n\n    - b\n\n        goes on\n\ntext\n\n    code\n", [10]),
            ('!!! note "n"\n\n    text\n\n    more\n', []),
            ("```text\n\n    inside\n```\n", []),
        ],
    )
    def test_indented_code(self, page: Callable[[str], Path], text: str, lines: list[int]) -> None:
        assert indented_code(page(text)) == lines

    def test_commands(self) -> None:
        assert commands("$ make demo   # once\noutput\n$ a \\\n    --b 1\n") == ["make demo   # once", "a --b 1"]

    def test_inline_commands(self, page: Callable[[str], Path]) -> None:
        text = "Say `python -m montessori_pl compare --help`, `fit`, or `python -m montessori_pl fit --config FILE`.\n"
        assert inline_commands(page(text)) == [(1, "python -m montessori_pl compare --help")]

    @pytest.mark.slow
    def test_wrong_commands_fail(self, run_command: Callable[[str], None]) -> None:
        with pytest.raises(ConfigError, match="did you mean"):
            run_command("python -m montessori_pl fit --config iter1.yaml --recipe.warmup.training.lrr 1e-4")
        with pytest.raises(AssertionError):
            run_command("make demonstration")
        with pytest.raises(AssertionError):
            run_command("pip install '.[vlm]'")
        with pytest.raises(AssertionError, match="has no --where"):
            run_command("python examples/score_dataset.py --where x")
        with pytest.raises(AssertionError, match="ends with 2"):
            run_command("python -m montessori_pl fit --dry_run")
        with pytest.raises(pytest.fail.Exception, match="nobody knows how to test"):
            run_command("rm -r run")
