"""The run directories of a cell: which there are, what they take over from each other, and how they are run.

<cell>/<arm>/             the arm's recipe
      /<arm>.students/    further students on its training data
      /<arm>.influence/   the influence of its training data, where its recipe does not measure it or does so on
                          another student than the other arms'
      /<run>.yaml, .log   the recipe of such a further run; what the program has said
      /oracle.jsonl       what the oracle's student learns, where there is such an arm
      /<run>.finished     the settings under which the run finished, so that it is not even started again
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from montessori_pl.classroom import resolve
from montessori_pl.cli.recipe_files import shipped_configs
from montessori_pl.run_directory.atomic import write_records
from study.oracle import oracle_examples
from study.settings import Arm, Settings

COUNTS: dict[str, dict[str, Any]] = {
    "full": {},
    "small": {
        "recipe.warmup_data.num_examples": 24,
        "recipe.probing_data.num_prompts": 8,
        "recipe.candidates.num_examples": 96,
        "recipe.training_data.num_examples": 48,
        "recipe.influence_after.max_examples": 8,
    },
}
"""Settings that replace an arm's where its recipe has them; `small` tries the machinery out and says nothing else."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory with what is run in it."""

    path: Path
    """The directory."""
    file: Path
    """The recipe file."""
    overrides: dict[str, Any]
    """Settings on top of the file, by their dotted names on the command line."""

    @property
    def config(self) -> dict[str, Any]:
        """The file with the overrides, as far as the two tell; defaults are the program's business."""
        # Through JSON, so that mappings which the file writes once and uses twice are two.
        config: dict[str, Any] = json.loads(json.dumps(yaml.safe_load(self.file.read_text(encoding="utf-8"))))
        for dotted, value in self.overrides.items():
            override(config, dotted, value)
        return config

    @property
    def finished(self) -> bool:
        """Whether the run has finished under these very settings, with no stage deleted since."""
        stamp = self._beside(".finished")
        if not stamp.exists() or json.loads(stamp.read_text(encoding="utf-8")) != self.config:
            return False
        stages = manifest(self.path)
        return bool(stages) and all((self.path / key).is_dir() for key in stages)

    def fit(self) -> str:
        """Run the program in a process of its own, if need be; its last words if it failed, else nothing."""
        if self.finished:
            return ""
        arguments = [part for name, value in self.overrides.items() for part in (f"--{name}", as_argument(value))]
        command = [sys.executable, "-m", "montessori_pl", "fit", "--config", str(self.file), *arguments]
        log = self._beside(".log")
        with open(log, "a", encoding="utf-8") as file:
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if status:
            return last_words(log)
        self._beside(".finished").write_text(json.dumps(self.config, indent=1) + "\n", encoding="utf-8")
        return ""

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)


def last_words(log: Path) -> str:
    """The last line of what a run has printed, without the note on where its traceback is kept."""
    lines = log.read_text(encoding="utf-8").strip().splitlines()
    if len(lines) > 1 and lines[-1].startswith("the traceback is in "):
        del lines[-1]
    return lines[-1] if lines else "no output"


@dataclasses.dataclass(frozen=True)
class CellRuns:
    """The runs of all arms in one world under one seed."""

    settings: Settings
    """Of the study."""
    directory: Path
    """Of the cell."""
    world: int
    """Seed of the classroom."""
    seed: int
    """Of the runs."""
    counts: str = "full"
    """A key of `COUNTS`."""
    copy: bool = True
    """Whether a run takes finished stages over from another one instead of doing them again."""

    def fit(self, arm: Arm, donors: list[Run]) -> str:
        """Run an arm and what is measured beside it; the last words of the first run that fails, else nothing.

        Args:
            arm: the arm.
            donors: finished runs of this cell, from which equal stages are taken over; this arm's join them.
        """
        run = self.run(arm)
        if why := self._fit(run, donors):
            return why
        further = [self.students(arm)] if self.settings.student_seeds > 1 else []
        if needs_influence(arm):
            further.append(self.influence(arm))
        for one in further:
            if why := self._fit(one, donors):
                return f"{one.path.name}: {why}"
        return ""

    def _fit(self, run: Run, donors: list[Run]) -> str:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.copy and donors and not run.path.exists():
            shared = [(donor, shared_stages(run.config, donor)) for donor in donors]
            donor, keys = max(shared, key=lambda pair: len(pair[1]))
            if keys:
                copy_stages(donor, keys, run.path)
        why = run.fit()
        if not why:
            donors.append(run)
        return why

    def run(self, arm: Arm) -> Run:
        """The arm's own run."""
        file = shipped_configs() / arm.config
        stages = yaml.safe_load(file.read_text(encoding="utf-8"))["recipe"]
        overrides = {
            "run": str(self.directory / arm.name),
            "seed_everything": self.seed,
            "iterations": arm.iterations,
            "trainer.logger": False,
            "student.backbone": f"classroom@{self.world}/student",
            "teacher.backbone": f"classroom@{self.world}/teacher",
            **{f"data.{role}": f"classroom@{self.world}/{role}" for role in ("seed_tasks", "reference", "test")},
            **self._sources(stages),
            **{dotted: count for dotted, count in COUNTS[self.counts].items() if _has(stages, dotted)},
        }
        if arm.oracle:
            number = overrides.pop(
                "recipe.training_data.num_examples", stages["training_data"]["init_args"]["num_examples"]
            )
            overrides["recipe.training_data"] = self._oracle(number)
        return Run(self.directory / arm.name, file, overrides | arm.overrides)

    def _sources(self, stages: Mapping[str, Any]) -> dict[str, str]:
        """This world's files, where a stage reads those of the embedded one."""
        sources = {name: stage.get("init_args", {}).get("source", "") for name, stage in stages.items()}
        ours = {name: role for name, role in sources.items() if role.startswith("classroom/")}
        return {
            f"recipe.{name}.source": role.replace("classroom/", f"classroom@{self.world}/", 1)
            for name, role in ours.items()
        }

    def _oracle(self, number: int) -> dict[str, Any]:
        """A stage that reads the classroom's best examples, from a file that is made here."""
        path = self.directory / "oracle.jsonl"
        if not path.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            write_records(path, oracle_examples(number, self.world, self.seed))
        return {"class_path": "RecordedExamples", "init_args": {"source": str(path)}}

    def students(self, arm: Arm) -> Run:
        """The students from the second one on, which learn the same examples from other seeds.

        The seed of a stage comes from the run's seed and the stage's name: students of one number are trained alike
        in all arms of a cell, and no two students of an arm are.
        """
        names = students(self.settings.student_seeds)
        recipe = self.run(arm).config["recipe"]
        evaluation = _copy(recipe["evaluation"])
        evaluation["init_args"]["students"] = names
        return self._further(
            arm,
            "students",
            {"training_data": self._recorded(arm), **dict.fromkeys(names, recipe["trained"]), "evaluation": evaluation},
        )

    def influence(self, arm: Arm) -> Run:
        """The main arm's warm-up and last scoring with this arm's training data between them.

        Stages keep their names, so that the same places of the data are sampled.
        """
        main = self.run(self.settings.arms[self.settings.main]).config["recipe"]
        stages = {name: main[name] for name in ("warmup_data", "warmup")}
        stages["training_data"] = self._recorded(arm)
        return self._further(arm, "influence", stages | {"influence_after": main["influence_after"]})

    def _recorded(self, arm: Arm) -> dict[str, Any]:
        source = self.directory / arm.name / arm.last / "training_data" / "examples.jsonl"
        return {"class_path": "RecordedExamples", "init_args": {"source": str(source)}}

    def _further(self, arm: Arm, what: str, stages: Mapping[str, Any]) -> Run:
        """A run beside an arm's own. Where it measures influence, it does so under the main arm's settings."""
        path = self.directory / f"{arm.name}.{what}"
        owner = self.settings.arms[self.settings.main] if what == "influence" else arm
        config = self.run(owner).config | {"run": str(path), "iterations": 1, "recipe": dict(stages)}
        file = path.with_name(path.name + ".yaml")
        self.directory.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(_copy(config), sort_keys=False), encoding="utf-8")
        return Run(file=file, path=path, overrides={})


def cell_directory(out: Path, world: int, seed: int) -> Path:
    """Where a cell lies; the first use of a world builds it. A classroom that was built otherwise is another one."""
    return out / resolve(f"classroom@{world}/seed_tasks").parent.name / f"seed_{seed}"


def students(number: int) -> list[str]:
    """The stages that train the further students, when there are so many in all."""
    return [f"trained_{index}" for index in range(2, number + 1)]


def needs_influence(arm: Arm) -> bool:
    """Whether the arm's own recipe does not say what its last training data are worth to the common warm student."""
    recipe = yaml.safe_load((shipped_configs() / arm.config).read_text(encoding="utf-8"))["recipe"]
    return "influence_after" not in recipe or arm.iterations > 1


def manifest(run: Path) -> dict[str, Any]:
    """What the manifest knows about each stage, by the stage's key (`iteration_1/warmup`); nothing without one."""
    path = run / "manifest.json"
    stages: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["stages"] if path.exists() else {}
    return stages


def override(config: dict[str, Any], dotted: str, value: Any) -> None:
    """Change a setting by its name on the command line, where `init_args` is left out."""
    node = config
    *path, last = dotted.split(".")
    for part in path:
        node = _arguments(node)
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    _arguments(node)[last] = value


def _arguments(node: dict[str, Any]) -> dict[str, Any]:
    if "class_path" not in node:
        return node
    arguments: dict[str, Any] = node.setdefault("init_args", {})
    return arguments


def as_argument(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def shared_stages(config: Mapping[str, Any], donor: Run) -> list[str]:
    """The keys of the finished stages of another run that a run with this configuration would do alike.

    These are the stages for which all sections are equal to which the donor's manifest has pinned them, as far as they
    are pinned, and which read only stages of this kind. What is written out in one configuration and left to a default
    in the other counts as different: a stage is then done again without need. When the run goes on, the program
    compares settings and hashes of what was copied once more.
    """
    theirs = donor.config
    shared: list[str] = []
    for key, entry in manifest(donor.path).items():
        iteration, name = key.removeprefix("iteration_").split("/")
        if (
            entry["finished"]
            and name in config["recipe"]
            and int(iteration) <= config["iterations"]
            and all(_alike(_section(config, n), _section(theirs, n), kept) for n, kept in entry["settings"].items())
            and all(source == "base" or source.split()[0] in shared for source in entry["inputs"].values())
        ):
            shared.append(key)
    return shared


def _alike(section: Any, theirs: Any, kept: Any) -> bool:
    """Whether two sections are equal but for what the stage is not pinned to, such as DPO's `beta` where it writes."""
    if not isinstance(kept, dict) or "init_args" not in kept or section is None or theirs is None:
        return bool(section == theirs)
    pinned, given = (
        {**one, "init_args": {k: v for k, v in one.get("init_args", {}).items() if k in kept["init_args"]}}
        for one in (theirs, section)
    )
    return pinned == given


def _section(config: Mapping[str, Any], name: str) -> Any:
    stage = name.removeprefix("recipe.")
    return config["recipe"].get(stage) if stage != name else config.get(name)


def copy_stages(source: Run, keys: Sequence[str], target: Path) -> None:
    """Begin a run with finished stages of another one."""
    draft = target.with_name(target.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    for key in keys:
        shutil.copytree(source.path / key, draft / key)
    entries = manifest(source.path)
    text = json.dumps({"facts": {}, "stages": {key: entries[key] for key in keys}}, indent=1)
    (draft / "manifest.json").write_text(text + "\n", encoding="utf-8")
    draft.rename(target)


def _has(stages: Mapping[str, Any], dotted: str) -> bool:
    _, stage, setting = dotted.split(".")
    return stage in stages and setting in stages[stage]["init_args"]


def _copy(config: Any) -> Any:
    return json.loads(json.dumps(config))
