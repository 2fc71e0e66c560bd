"""The harness inside a run, beside its own command line; with a tiny model and tasks made here."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stage_runs import Killed, never
from tiny_models import random_adapter, save_tiny_model

from montessori_pl.batches.sources import DataSources
from montessori_pl.evaluation import LMEvalHarness
from montessori_pl.evaluation.lm_eval_harness import _metrics, _named, _plain
from montessori_pl.models.loading import LoraSettings, ModelSource

DATA = DataSources("none", "none")
needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-evaluation-harness")
QUIET = "ignore::UserWarning"
"""What the harness and what it imports warn of is theirs."""

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}, train: {data}}}}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}?"
doc_to_choice: [" yes", " nope", " it is"]
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
GENERATION = """
task: tiny_generation
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}?"
doc_to_target: "{{{{text}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: false}}
filter_list:
  - {{name: first, filter: [{{function: regex, regex_pattern: "([a-z])"}}, {{function: take_first}}]}}
  - {{name: whole, filter: [{{function: take_first}}]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    directory = tmp_path / "tasks"
    directory.mkdir()
    words = ["who", "what is", "where", "why", "a cat", "the dog", "one", "so it is", "not", "when", "ever"]
    rows = [{"question": one, "answer": n % 3, "text": "ab"[n % 2]} for n, one in enumerate(words)]
    (directory / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", CHOICE), ("generation", GENERATION)):
        (directory / f"{name}.yaml").write_text(text.format(data=directory / "rows.json"))
    return directory


@pytest.fixture
def adapted(tmp_path: Path) -> ModelSource:
    """A student with a LoRA adapter that changes what it says."""
    base = ModelSource(save_tiny_model(tmp_path / "base"))
    return random_adapter(base, LoraSettings(r=2, alpha=8), tmp_path / "trained" / "weights")


def own_command_line(tmp_path: Path, model: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """What `lm_eval` says of a checkpoint, by task."""
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", model, "--device", "cpu"]
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [*command, "--batch_size", "4", "--output_path", str(tmp_path / "own"), *arguments],
        check=True,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
    )
    (path,) = (tmp_path / "own").rglob("results_*.json")
    results: dict[str, dict[str, Any]] = json.loads(path.read_text())["results"]
    return results


@pytest.mark.slow
@needs_harness
@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize("chat", [False, True])
def test_equals_its_own_command_line(
    adapted: ModelSource, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = ["tiny_choice", "tiny_generation"]
    evaluator = LMEvalHarness(names, str(tasks), num_fewshot=2, apply_chat_template=chat, batch_size=4)
    evaluator.directory = tmp_path / "ours"
    evaluator.check_environment()
    found = evaluator.evaluate(adapted, DATA, never)
    own = own_command_line(
        tmp_path,
        f"pretrained={adapted.backbone},peft={adapted.weights},dtype=float32",
        *("--tasks", ",".join(names), "--include_path", str(tasks), "--num_fewshot", "2"),
        *(["--apply_chat_template"] if chat else []),
    )
    assert found == {
        "tiny_choice_acc": own["tiny_choice"]["acc,none"],
        "tiny_choice_acc_standard_error": own["tiny_choice"]["acc_stderr,none"],
        "tiny_choice_acc_norm": own["tiny_choice"]["acc_norm,none"],
        "tiny_choice_acc_norm_standard_error": own["tiny_choice"]["acc_norm_stderr,none"],
        "tiny_generation_exact_match_first": own["tiny_generation"]["exact_match,first"],
        "tiny_generation_exact_match_first_standard_error": own["tiny_generation"]["exact_match_stderr,first"],
        "tiny_generation_exact_match_whole": own["tiny_generation"]["exact_match,whole"],
        "tiny_generation_exact_match_whole_standard_error": own["tiny_generation"]["exact_match_stderr,whole"],
    }
    assert 0 < found["tiny_choice_acc"] < 1
    samples = [json.loads(line) for line in (tmp_path / "ours" / "samples_tiny_choice.jsonl").read_text().splitlines()]
    assert len(samples) == 11
    assert sum(one["acc"] for one in samples) / 11 == found["tiny_choice_acc"]


@pytest.mark.slow
@needs_harness
@pytest.mark.filterwarnings(QUIET)
def test_goes_on_behind_the_tasks_that_are_done(
    adapted: ModelSource, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def evaluator(name: str) -> LMEvalHarness:
        made = LMEvalHarness(["tiny_choice", "tiny_generation"], str(tasks), limit=5)
        made.directory = tmp_path / name
        return made

    expected = evaluator("whole").evaluate(adapted, DATA, never)
    run, done = LMEvalHarness._run, []

    def dying(self: LMEvalHarness, task: str, model: Any) -> Any:
        if len(done) == 1:
            raise Killed
        done.append(task)
        return run(self, task, model)

    monkeypatch.setattr(LMEvalHarness, "_run", dying)
    with pytest.raises(Killed):
        evaluator("killed").evaluate(adapted, DATA, never)
    done.clear()
    assert evaluator("killed").evaluate(adapted, DATA, never) == expected
    assert done == ["tiny_generation"]
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(files) == 4
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "killed").iterdir()}
    monkeypatch.setattr(LMEvalHarness, "_model", never)
    assert evaluator("killed").evaluate(adapted, DATA, never) == expected, "nothing is loaded for what is done"


@pytest.mark.slow
@needs_harness
@pytest.mark.filterwarnings(QUIET)
def test_mistakes_in_a_sentence(
    adapted: ModelSource, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="has no task 'arc_chalenge'; similar ones are arc_challenge"):
        LMEvalHarness(["tiny_choice", "arc_chalenge"], str(tasks)).check_environment()
    (tasks / "rows.json").unlink()
    with pytest.raises(ValueError, match="the data of the task 'tiny_choice' cannot be read: "):
        LMEvalHarness(["tiny_choice"], str(tasks)).evaluate(adapted, DATA, never)


def test_groups_and_tags_have_the_numbers_of_their_members() -> None:
    """Where they have none of their own: a group has them where its file says how to aggregate."""
    members: dict[str, dict[str, Any]] = {"one": {"alias": " - one", "acc,none": 0.25}, "two": {"acc,none": 0.75}}
    group = {"suite": {"alias": "suite", " ": ""}}
    assert _metrics(_named("suite", group | members)) == {"one_acc": 0.25, "two_acc": 0.75}
    assert _metrics(_named("suite", members)) == {"one_acc": 0.25, "two_acc": 0.75}
    mean = {"suite": {"alias": "suite", "acc,none": 0.5, "acc_stderr,none": "N/A"}}
    assert _metrics(_named("suite", mean | members)) == {"suite_acc": 0.5}


def test_numbers_that_are_not_finite_are_not_lost(tmp_path: Path) -> None:
    """The stage refuses them by name; also those that a file of an earlier session holds, as text."""
    numbers = {"a": {"ppl,none": math.inf, "acc,none": math.nan, "acc_stderr,none": math.nan, "f1,none": 0.5}}
    evaluator = LMEvalHarness(["a"])
    evaluator.directory = tmp_path
    (tmp_path / "results_a.json").write_text(json.dumps({"all_results": _plain(numbers)}))
    for found in (_metrics(numbers), evaluator.evaluate(ModelSource("none"), DATA, never)):
        assert math.isnan(found.pop("a_acc"))
        assert found == {"a_ppl": math.inf, "a_f1": 0.5}


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    found: dict[str, Any] = {"lm_eval": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[name] if name in found else find(name))
    with pytest.raises(ValueError, match=r"needs lm-evaluation-harness: pip install 'montessori-pl\[harness\]'"):
        LMEvalHarness(["mmlu"]).check_environment()
    found["lm_eval"] = True
    with pytest.raises(ValueError, match="include_path 'none' is no directory"):
        LMEvalHarness(["mmlu"], "none").check_environment()
