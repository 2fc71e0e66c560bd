"""What a recipe file may hold, and how it becomes objects: sections, their types, and what `--help` says of them."""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import torch
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from montessori_pl.batches.sources import DataSources
from montessori_pl.bounds import Bounds, PositiveInt, Text
from montessori_pl.cli.common import add_debug, expand_home
from montessori_pl.cli.recipe_files import find_configs
from montessori_pl.cli.settings_check import check_bounds, find_in_stages, find_not_built
from montessori_pl.config_errors import ConfigError, name_overridden, read_recipe
from montessori_pl.generation import GenerationBackend
from montessori_pl.generation.pool_teacher import PoolTeacher
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.student import StudentModule
from montessori_pl.stages import Stage

PROGRAM = "python -m montessori_pl"
ABOUT = "Teachers learn to write the training data from which a student model learns most."
ABOUT_FIT = (
    "Run a recipe, or continue a run. --config NAME looks for a recipe file in the working directory, then among the "
    f"recipes that ship with the program. Example: {PROGRAM} fit --config iter1.yaml"
)
OTHER_COMMANDS = (
    "init writes a recipe for your models and files. Four commands read what runs have written: compare puts runs into "
    "one table, report makes a page of them, export writes the data of a run for other trainers, and verify says "
    f"whether the files of a run are as they were written. For their options, see {PROGRAM} compare --help, and so on."
)
"""What `--help` says of the commands that are not Lightning's."""
TYPES: dict[str, Any] = {
    "seed_everything": Annotated[int, Bounds(ge=0, le=2**32 - 1)],
    "run": Text,
    "iterations": Annotated[int, Bounds(ge=1, le=1000)],
    "num_threads": Annotated[int, Bounds(ge=1, le=1024)] | None,
    "gpus": Text | None,
    "preview": PositiveInt | None,
    "student": Callable[[], StudentModule],
    "teacher": Callable[[], TeacherDPOModule] | None,
    "teachers": dict[str, PoolTeacher],
    "trainer": Any,
    "generation": Callable[[], GenerationBackend],
    "data": DataSources,
    "recipe": dict[str, Stage],
}
"""What the keys at the top of a recipe file hold; Lightning knows what its trainer takes."""


class RecipeCLI(LightningCLI):
    """Parses a recipe, and builds what it names."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only `fit`, without the arguments of the trainer's method: the recipe makes its own calls."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path", "weights_only"},
        }

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser of the program, or of its command."""
        parser = super().init_parser(**kwargs)
        add_debug(parser)
        return parser

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """The parsers; Lightning's list of commands would quote its trainer's docstring."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        assert self.parser._subcommands_action is not None
        for listed in self.parser._subcommands_action._choices_actions:
            listed.help = "Run a recipe, or continue a run."

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed, which cannot be left to chance: a run that is started again would have another one."""
        parser.add_argument(
            "--seed_everything",
            type=TYPES["seed_everything"],
            default=self.seed_everything_default,
            help="The random seed; each stage derives its own from it, from the iteration and from its name.",
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The sections of a recipe file."""
        parser.add_argument(
            "--run",
            type=TYPES["run"],
            required=True,
            help="Directory of the run. A run that is started again continues there.",
        )
        parser.add_argument(
            "--iterations",
            type=TYPES["iterations"],
            default=1,
            help="How many times the stages of the recipe are run, one after another.",
        )
        parser.add_argument(
            "--dry_run",
            action="store_true",
            help="Estimate what the run, or what is left of it, will take, and show some prompts. "
            "Nothing is run or written.",
        )
        parser.add_argument(
            "--gpus",
            type=TYPES["gpus"],
            default=None,
            help="With --dry_run: plan time and memory for these GPUs, such as 8xH100 or 1x24 (one of 24 GB), in place "
            "of this machine.",
        )
        parser.add_argument(
            "--preview",
            type=TYPES["preview"],
            default=None,
            help="Sample so many completions for each stage that writes, and show them with what is accepted of them "
            "and why not more, here and as a page beside the run. Nothing is written into the run.",
        )
        parser.add_argument(
            "--requeue",
            action="store_true",
            help="Under Slurm, put the job back into the queue when SIGUSR1 has stopped it, of which "
            "`#SBATCH --signal=USR1@120` takes care.",
        )
        parser.add_argument(
            "--num_threads",
            type=TYPES["num_threads"],
            default=None,
            help="CPU threads of PyTorch, and of vLLM on a CPU. With null, they choose. Very small models are fastest "
            "with 1.",
        )
        parser.add_argument(
            "--student", type=TYPES["student"], required=True, help="The model that the data is made for."
        )
        parser.add_argument(
            "--teacher",
            type=TYPES["teacher"],
            default=None,
            help="The model that writes the data and learns to write better. With null, only the teachers of the pool "
            "write.",
        )
        parser.add_argument(
            "--teachers",
            type=TYPES["teachers"],
            default={},
            help="The pool: teachers by name that write and are not trained.",
        )
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.add_argument(
            "--generation", type=TYPES["generation"], required=True, help="The engine that generates text."
        )
        parser.add_class_arguments(DataSources, "data")
        parser.add_argument(
            "--recipe", type=TYPES["recipe"], required=True, help="The stages by name, in the order in which they run."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Find the recipe files that ship with the program."""
        arguments = find_configs(list(args) if isinstance(args, list) else sys.argv[1:])
        try:
            self.config = expand_home(parser.parse_args(arguments))
        except ConfigError as error:
            recipe = read_recipe(arguments)
            if not str(error).startswith("recipe"):
                raise
            raise find_in_stages(recipe, Stage) or name_overridden(error, recipe, arguments) from None
        check_bounds(self._sections(), TYPES)

    def instantiate_classes(self) -> None:
        """Build the plugins of the recipe; trainers are built for each stage."""
        if (num_threads := self._get(self.config, "num_threads")) is not None:
            torch.set_num_threads(num_threads)
            os.environ["OMP_NUM_THREADS"] = str(num_threads)  # of processes that are started: Lightning's, an engine's
        try:
            self.config_init = self.parser.instantiate_classes(self.config)
            for section in ("student", "teacher", "generation"):
                if (make := self._get(self.config_init, section)) is not None:
                    make()
        except Exception as error:  # of a plugin it may be any
            raise find_not_built(self._sections(), TYPES) or error from None
        self.datamodule = self.model = None

    def _dump_config(self) -> None:
        """Nothing. Lightning writes all settings out here, to give the section `model` to modules that save their
        hyperparameters; there is no such section, and to write took a third of the time that settings took."""
        self.config_dump: dict[str, Any] = {}

    def _sections(self) -> dict[str, Any]:
        """The recipe file as it was parsed, section by section."""
        sections: dict[str, Any] = self.config["fit"].as_dict()
        return sections
