"""The EleutherAI harness (lm-evaluation-harness) on a student, task by task."""

import difflib
import importlib.util
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from montessori_pl.batches.sources import DataSources
from montessori_pl.bounds import NonNegativeInt, PositiveInt, Text, Texts
from montessori_pl.data.text import writable
from montessori_pl.evaluation.base import Evaluator
from montessori_pl.generation.base import GenerationBackend
from montessori_pl.models.loading import ModelSource, best_device, load_chat_template, load_model, move_to
from montessori_pl.run_directory.atomic import write_json, write_json_lines
from montessori_pl.run_directory.durable import make_directory
from montessori_pl.run_directory.fingerprint import Files

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

RESULTS, SAMPLES = "results_{}.json", "samples_{}.jsonl"
"""Files of a task; the former is written last."""
_STDERR = "_stderr"
_NOT_FINITE = ("nan", "inf", "-inf")
"""Numbers that JSON has not, as the files hold them."""


class LMEvalHarness(Evaluator):
    """Benchmarks of lm-evaluation-harness, or tasks of your own in its YAML form, on the student as it is loaded here.

    The numbers are those of `lm_eval run` with the same settings on the same weights. They are called by task and
    metric, as `arc_challenge_acc_norm`, and by filter where there is one, as `gsm8k_exact_match_strict-match`. Each
    task is kept when it is done: its results in `results_TASK.json`, each item in `samples_TASK.jsonl`.

    Args:
        tasks: tasks, groups or tags.
        include_path: a directory of YAML files of tasks beside those that the harness brings.
        num_fewshot: examples in front of each question; null takes what the task says, and a task that says 0 keeps it.
        limit: items of each task, from its first on; null takes all.
        apply_chat_template: whether questions, and the examples in front of them, are turns of the student's chat
            template.
        batch_size: items at once.
    """

    generates: ClassVar[bool] = False
    artifacts: ClassVar[tuple[str, ...]] = (RESULTS.format("*"), SAMPLES.format("*"))
    files: ClassVar[Files] = {"include_path": Path}
    fingerprint_excludes: ClassVar[tuple[str, ...]] = ("batch_size",)

    def __init__(
        self,
        tasks: Texts,
        include_path: Text | None = None,
        num_fewshot: NonNegativeInt | None = None,
        limit: PositiveInt | None = None,
        apply_chat_template: bool = False,
        batch_size: PositiveInt = 8,
    ) -> None:
        self.tasks, self.include_path, self.num_fewshot, self.limit = tasks, include_path, num_fewshot, limit
        self.apply_chat_template, self.batch_size = apply_chat_template, batch_size

    def check_environment(self) -> None:
        """The harness itself, and the names of the tasks; their data are not looked at."""
        if importlib.util.find_spec("lm_eval") is None:
            raise ValueError("LMEvalHarness needs lm-evaluation-harness: pip install 'montessori-pl[harness]'")
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ValueError(f"include_path {self.include_path!r} is no directory; name one with YAML files of tasks")
        known = self._task_manager.all_tasks
        if unknown := [task for task in self.tasks if task not in known]:
            similar = difflib.get_close_matches(unknown[0], known, n=5)
            exist = f"similar ones are {', '.join(similar)}" if similar else "`lm_eval ls tasks` lists them"
            where = f" and {self.include_path}" if self.include_path else ""
            raise ValueError(f"the harness{where} has no task {unknown[0]!r}; {exist}")

    def evaluate(
        self, student: ModelSource, data: DataSources, backend: Callable[[], GenerationBackend]
    ) -> dict[str, float]:
        """Each task's metrics, with their standard errors.

        Raises:
            ValueError: a task cannot be read, for example because its data are not here.
        """
        metrics: dict[str, float] = {}
        model = None
        for task in self.tasks:
            results = self._kept(task)
            if results is None:
                model = model or self._model(student)
                results = self._run(task, model)
            metrics |= _metrics(results)
        return metrics

    @cached_property
    def _task_manager(self) -> "TaskManager":
        """The tasks that there are; reading the thousands that the harness brings takes half a minute of a CPU."""
        from lm_eval.tasks import TaskManager

        if self.include_path is not None:
            own = TaskManager(include_path=self.include_path, include_defaults=False)
            if set(self.tasks) <= set(own.all_subtasks):
                return own
        return TaskManager(include_path=self.include_path)

    def _model(self, student: ModelSource) -> "HFLM":
        from lm_eval.models.huggingface import HFLM

        chat_template = load_chat_template(student)
        chat_template.tokenizer.chat_template = chat_template.text.source
        return HFLM(
            pretrained=move_to(best_device(), load_model(student)),
            tokenizer=chat_template.tokenizer,
            batch_size=self.batch_size,
            chat_template_args=student.chat_template_kwargs,
        )

    def _run(self, task: str, model: "HFLM") -> dict[str, dict[str, Any]]:
        """Do a task and keep it; returns the results of what it names, by name."""
        from datasets.exceptions import DatasetsError
        from lightning.pytorch.utilities.seed import isolate_rng
        from lm_eval import simple_evaluate

        try:
            with isolate_rng():  # the harness seeds all of them
                found = simple_evaluate(
                    model=model,
                    tasks=[task],
                    num_fewshot=self.num_fewshot,
                    limit=self.limit,
                    apply_chat_template=self.apply_chat_template,
                    fewshot_as_multiturn=self.apply_chat_template,
                    task_manager=self._task_manager,
                )
        except (OSError, DatasetsError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"the data of the task {task!r} cannot be read: {reason}; fetch them where there is a network, or name "
                "local files in a task of your own"
            ) from error
        assert found is not None, "only other processes than the first get nothing"
        all_results = {name: dict(numbers) for name, numbers in _plain(found["results"]).items()}
        results = _named(task, all_results)
        if self.directory is not None:
            make_directory(self.directory)
            rows = [
                {"task": name, **{key: _plain(value) for key, value in sample.items() if key != "arguments"}}
                for name, samples in found["samples"].items()
                for sample in samples
            ]
            write_json_lines(self._path(SAMPLES, task), rows)
            about = {name: _plain(found.get(name, {})) for name in ("versions", "n-shot", "n-samples")}
            write_json(self._path(RESULTS, task), {"results": results, "all_results": all_results, **about})
        return results

    def _kept(self, task: str) -> dict[str, dict[str, Any]] | None:
        """The results of a task that an earlier session has finished."""
        if self.directory is None or not self._path(RESULTS, task).exists():
            return None
        return _named(task, json.loads(self._path(RESULTS, task).read_text(encoding="utf-8"))["all_results"])

    def _path(self, name: str, task: str) -> Path:
        assert self.directory is not None
        return self.directory / name.format(re.sub(r"[^\w.-]", "_", task))


def _named(task: str, all_results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The results of what was asked for; a tag, or a group without an aggregate, has none but those of its members."""
    own = {name: numbers for name, numbers in all_results.items() if name == task}
    return own if _metrics(own) else all_results


def _metrics(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The harness's numbers under our names: `acc_norm,none` of a task becomes `TASK_acc_norm`.

    NaN and infinity are among them, for the stage to see; standard errors are left out where there are none.
    """
    metrics = {}
    for task, numbers in results.items():
        for key, value in numbers.items():
            metric, _, filter_ = key.partition(",")
            if not filter_ or not (isinstance(value, int | float) or value in _NOT_FINITE):
                continue
            name = "_".join([task, metric.removesuffix(_STDERR), *([filter_] if filter_ != "none" else [])])
            if not metric.endswith(_STDERR):
                metrics[name] = float(value)
            elif math.isfinite(float(value)):
                metrics[f"{name}_standard_error"] = float(value)
    return metrics


def _plain(value: Any) -> Any:
    """A value of the harness as JSON has it; what is no plain value, infinite numbers too, as text."""
    if hasattr(value, "tolist"):  # NumPy's and PyTorch's
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(one) for one in value]
    if isinstance(value, str):
        return writable(value)
    if isinstance(value, bool | int | None) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
