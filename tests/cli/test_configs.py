"""Recipe files: where they are found, what goes over what, and what is printed of them."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_files import SHIPPED, Recipe

from montessori_pl.__main__ import main as door
from montessori_pl.cli.fit import MontessoriCLI, main
from montessori_pl.cli.recipe_files import find_configs, shipped_configs
from montessori_pl.config_errors import SentenceParser
from montessori_pl.pipeline.recipe import Step, resolve_recipe


def steps_of(*arguments: str) -> list[Step]:
    """The steps of a recipe, without running it."""

    class Reader(MontessoriCLI):
        steps: list[Step]

        def fit(self) -> None:
            recipe, pool = self._get(self.config_init, "recipe"), self._get(self.config_init, "teachers")
            self.steps = resolve_recipe(recipe, self._get(self.config, "iterations"), pool)

    cli = Reader(
        args=["fit", *arguments],
        parser_class=SentenceParser,
        seed_everything_default=42,
        save_config_callback=None,
        auto_configure_optimizers=False,
    )
    return cli.steps


class TestConfigs:
    """Recipe files, and what can be said on the command line."""

    @pytest.mark.slow
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

    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_both_commands_are_the_same_program(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: Recipe
    ) -> None:
        arguments = ["fit", "--config", "iter1.yaml", "--recipe.warmup.training.lr=1e-4", "--print_config"]
        module = [sys.executable, "-m", "montessori_pl"]
        elsewhere = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # as from a notebook
        printed = subprocess.run(
            [*module, *arguments], capture_output=True, text=True, check=True, cwd=tmp_path, env=elsewhere
        ).stdout
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
