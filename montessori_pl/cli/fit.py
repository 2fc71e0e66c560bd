"""The command line: `python -m montessori_pl fit --config iter1.yaml`.

A `LightningCLI` whose `fit` runs a recipe instead of one trainer. All that Lightning's command line can do works here
too: `--print_config`, several `--config` files, `--help`, `class_path` plugins, and overriding any key, also that of a
stage (`--recipe.warmup.training.lr 1e-4`).
"""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from rich.console import Console

from montessori_pl.cli.common import DEBUG, PrintableFormatter, errors_end_in_a_sentence
from montessori_pl.cli.help import ReadableTypes
from montessori_pl.cli.loggers import continue_loggers
from montessori_pl.cli.plugins import load_shipped_plugins
from montessori_pl.cli.recipe_parser import ABOUT, ABOUT_FIT, OTHER_COMMANDS, PROGRAM, RecipeCLI
from montessori_pl.cli.stage_settings import stage_settings
from montessori_pl.cli.trainer_arguments import as_list, check_trainer_arguments, one_process
from montessori_pl.config_errors import ConfigError, SentenceParser
from montessori_pl.estimates.devices import Device, devices_named, this_machine
from montessori_pl.generation.pool_teacher import PoolTeacher
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.pipeline.dry_run import estimate_steps
from montessori_pl.pipeline.dry_run_table import print_estimates
from montessori_pl.pipeline.model_trial import Trial, remember
from montessori_pl.pipeline.preflight import preflight
from montessori_pl.pipeline.preview import preview_steps
from montessori_pl.pipeline.preview_page import preview_page, print_preview
from montessori_pl.pipeline.recipe import Step, needs_teacher, resolve_recipe
from montessori_pl.pipeline.resources import ResourcePlanner, RunPlan, TrainerShape, processes_of
from montessori_pl.pipeline.resources_table import print_resources
from montessori_pl.pipeline.runner import Runner
from montessori_pl.pipeline.time_left import PLANNED_SECONDS, RecipeClock
from montessori_pl.processes.peers import Peers
from montessori_pl.processes.sharding import FSDP2, register_strategies, strategy_name
from montessori_pl.processes.slurm import requeue_after_warning
from montessori_pl.processes.stop import STOP
from montessori_pl.processes.trainers import share_cores, take_over
from montessori_pl.report import print_summary, write_summary
from montessori_pl.run_directory.atomic import write_atomically
from montessori_pl.run_directory.progress import ConsoleDisplay
from montessori_pl.run_directory.run_directory import RunDirectory
from montessori_pl.stages import Stage


class MontessoriCLI(RecipeCLI):
    """Parses a recipe and runs it."""

    def _run_subcommand(self, subcommand: str) -> None:
        self.fit()

    def fit(self) -> None:
        """Run the recipe, or what is left of it; the processes of a run end together."""
        _check_run(Path(self._get(self.config, "run")))
        self._peers = Peers(Path(self._get(self.config, "run")))
        with self._peers.together() if not self._get(self.config, "dry_run") else nullcontext():
            if self._get(self.config, "requeue"):
                STOP.at_the_end.append(requeue_after_warning)
            self._fit()

    def _display(self) -> ConsoleDisplay:
        return ConsoleDisplay()

    def _fit(self) -> None:
        root = Path(self._get(self.config, "run"))
        check_trainer_arguments(_as_dict(self._get(self.config, "trainer")))
        pool: dict[str, PoolTeacher] = self._get(self.config_init, "teachers")
        steps = resolve_recipe(self._get(self.config_init, "recipe"), self._get(self.config, "iterations"), pool)
        dry_run: bool = self._get(self.config, "dry_run")
        preview: int | None = self._get(self.config, "preview")
        elsewhere = self._planned_for(dry_run, preview)
        self._check_for_teacher(pool)
        runner = Runner(
            run_directory=RunDirectory(root),
            display=self._display(),
            seed=int(self._get(self.config, "seed_everything")),
            data=self._get(self.config_init, "data"),
            student=self._get(self.config_init, "student"),
            teacher=self._get(self.config_init, "teacher") or _no_teacher,
            backend=self._get(self.config_init, "generation"),
            trainer=self._trainer,
            pool=pool,
        )
        settings = self._settings()
        passed: list[Trial] = []
        if left := [step for step in steps if not runner.run_directory.up_to_date(step.key, settings[step.name])]:
            passed = preflight(runner, left, dry_run or preview is not None, elsewhere is not None)
        if dry_run:
            if runner.leads:
                self.plan = self._plan(runner, steps, settings, elsewhere)
                self._show(self.plan, runner.display.console)
        elif preview is not None:
            if runner.leads:
                self._preview(runner, steps, preview, root)
        else:
            self._run_stages(runner, steps, settings, passed, any_left=bool(left))

    def _planned_for(self, dry_run: bool, preview: int | None) -> Device | None:
        """The machine that is planned for, where it is not this one."""
        if dry_run and preview is not None:
            raise ConfigError("--dry_run asks no model and --preview does; give one of them")
        gpus: str | None = self._get(self.config, "gpus")
        if gpus is not None and not dry_run:
            raise ConfigError("--gpus plans for a machine that is not this one; give it together with --dry_run")
        return devices_named(gpus) if gpus is not None else None

    def _run_stages(
        self,
        runner: Runner,
        steps: Sequence[Step],
        settings: dict[str, Any],
        passed: Sequence[Trial],
        any_left: bool,
    ) -> None:
        run_directory, display = runner.run_directory, runner.display
        share_cores(runner.trainer(callbacks=[]))
        with runner.locked(), _error_kept(run_directory.root) if runner.leads else nullcontext():
            if runner.leads:
                self._peers.forget_earlier()
                runner.open(steps, settings)
                self._keep_settings(run_directory.root)
                remember(run_directory, passed)
                if any_left:
                    run_directory.remember(data=runner.data.account())
                runner.clock = self._clock(runner, steps, settings)
                self._loggers = as_list(self._get(self.config_init, "trainer")["logger"])
                continue_loggers(self._loggers, run_directory)
                runner.loggers = self._loggers
                self._peers.open()
            else:
                self._peers.wait_until_open()
                run_directory.reload()
            worked = runner.run(steps, settings)
            if runner.leads:
                print_summary(write_summary(run_directory.root), display.console)
                if not worked:
                    display.say(f"All {len(steps)} stages had finished; nothing was left to do.")

    def _keep_settings(self, root: Path) -> None:
        """As `--print_config` prints them, so that `fit --config RUN/config.yaml` runs them again."""
        settings = self._subcommand_parsers["fit"].dump(self.config["fit"], skip_none=False, skip_link_targets=False)
        write_atomically(root / "config.yaml", settings)

    def _clock(self, runner: Runner, steps: Sequence[Step], settings: dict[str, Any]) -> RecipeClock:
        """What says how long the rest takes. What was planned when a stage began is kept; nothing is planned again."""
        run_directory = runner.run_directory
        planned: Mapping[str, float] = run_directory.facts.get(PLANNED_SECONDS, {})
        found: dict[str, float] = {}
        if any(step.key not in planned and not run_directory.begun(step.key) for step in steps):
            try:
                plan = self._plan(runner, steps, settings, elsewhere=None)
                found = {step.key: 0.0 for step in plan.steps if step.estimate is not None and not step.estimate.work}
                found |= {key: one.compute.seconds for key, one in plan.resources.items()}
            except Exception as error:  # of a stage's plugin, say: the run itself may well go on
                runner.display.say(f"no time is planned: {type(error).__name__}: {error}")
        return RecipeClock(run_directory, steps, {key: s for key, s in found.items() if not run_directory.begun(key)})

    plan: RunPlan | None = None
    """What a dry run has found."""

    def _plan(
        self, runner: Runner, steps: Sequence[Step], settings: dict[str, Any], elsewhere: Device | None
    ) -> RunPlan:
        trainer = _as_dict(self._get(self.config, "trainer"))
        device = elsewhere or this_machine()
        processes = runner.trainer(callbacks=[]).world_size if elsewhere is None else processes_of(trainer, elsewhere)
        shape = TrainerShape.of(trainer, processes)
        estimates = estimate_steps(runner, steps, settings, processes)
        return ResourcePlanner(runner, steps, device, shape).plan(steps, estimates)

    def _show(self, plan: RunPlan, console: Console) -> None:
        print_resources(plan, console)
        print_estimates(plan.steps, console)

    def _preview(self, runner: Runner, steps: Sequence[Step], num_prompts: int, root: Path) -> None:
        previews = preview_steps(runner, steps, num_prompts)
        print_preview(previews, runner.display.console)
        page = root.with_name(f"{root.name}.preview.html")
        page.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(page, preview_page(previews, f"Preview of {root}"))
        runner.display.say(f"\nAll texts in full: {page}. Nothing was written into the run.")

    def _settings(self) -> dict[str, dict[str, Any]]:
        """For each stage, the settings that its result depends on."""
        return stage_settings(self._sections(), self._get(self.config_init, "recipe"))

    def _trainer(
        self, callbacks: list[Any], alone: bool = False, whole_weights: bool = False, **arguments: Any
    ) -> Trainer:
        """A trainer as the `trainer` section says, with fresh callbacks, the stage's own, and no bars or tables.

        Args:
            callbacks: the stage's own.
            alone: whether it works in this process alone, however many the section names.
            whole_weights: whether each process holds whole weights, also where the section says otherwise.
            **arguments: the stage's own.
        """
        configured = self._get(self.parser.instantiate_classes(self.config), "trainer").as_dict()
        configured |= {
            "callbacks": [*as_list(configured.get("callbacks")), *callbacks],
            "logger": self._loggers or False,
            "use_distributed_sampler": False,  # our loaders deal out the work themselves
            **({"strategy": "ddp"} if whole_weights and strategy_name(configured.get("strategy")) == FSDP2 else {}),
            **(one_process(configured) if alone else {}),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **arguments,
        }
        trainer = self.trainer_class(**configured)
        take_over(trainer, self._peers)
        return trainer

    _loggers: Sequence[Logger] = ()

    def _check_for_teacher(self, pool: Collection[str]) -> None:
        recipe: dict[str, Stage] = self._get(self.config_init, "recipe")
        for name, stage in recipe.items():
            if needs_teacher(stage, pool) and self._get(self.config_init, "teacher") is None:
                raise ConfigError(f"recipe.{name} asks the teacher, and the recipe file has no section `teacher`")


def _check_run(root: Path) -> None:
    """Refuse a directory that cannot be made, before anything is looked at."""
    there = next(one for one in (root, *root.parents, Path.cwd()) if one.exists())
    if not there.is_dir():
        raise ConfigError(f"run: {there} is a file, and {root} is to be a directory; choose another with --run")


def _no_teacher() -> TeacherDPOModule:
    raise ConfigError("the recipe file has no section `teacher`")


@contextmanager
def _error_kept(root: Path) -> Iterator[None]:
    """Keep the traceback of what ends a run; the user sees one sentence, and where the traceback is."""
    path = root / "error.log"
    try:
        yield
    except Exception as error:
        path.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
        error.add_note(f"the traceback is in {path}")
        raise


def _as_dict(config: Any) -> Any:
    return config.as_dict() if hasattr(config, "as_dict") else config


def quiet() -> None:
    """Leave the console to the stages: the libraries' notices repeat at each of them."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("openai", "httpx2"):  # a line for each request
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", module=r"peft\..*")
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def main(arguments: list[str] | None = None) -> None:
    """The command `fit`. Mistakes of the user end in one sentence and exit status 2.

    Args:
        arguments: the command line, `fit` included, without the program's name; none takes the process's own.
    """
    quiet()
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    with errors_end_in_a_sentence(DEBUG in (sys.argv if arguments is None else arguments)):
        _run(MontessoriCLI, arguments)


def planned(arguments: list[str]) -> RunPlan:
    """What a dry run finds, without a word on the console.

    Args:
        arguments: of `fit`, with `--dry_run`.

    Raises:
        ValueError: the sentence with which `fit` would end.
    """
    plan = _run(_Planning, arguments).plan
    assert plan is not None, "give --dry_run"
    return plan


class _Planning(MontessoriCLI):
    """Plans, and says nothing."""

    def _display(self) -> ConsoleDisplay:
        return ConsoleDisplay(Console(quiet=True))

    def _show(self, plan: RunPlan, console: Console) -> None:
        return


def _run(kind: type[MontessoriCLI], arguments: list[str] | None) -> MontessoriCLI:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # plugins beside the recipe are found by the console command too
    load_shipped_plugins()
    register_strategies()
    return kind(
        args=arguments,
        parser_class=SentenceParser,
        parser_kwargs={
            "prog": PROGRAM,
            "description": ABOUT,
            "epilog": OTHER_COMMANDS,
            "allow_abbrev": False,
            "formatter_class": ReadableTypes,
            "fit": {"description": ABOUT_FIT},
        },
        seed_everything_default=42,
        save_config_callback=None,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )
