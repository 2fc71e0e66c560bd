"""Of several processes the first asks an endpoint for all: one journal, one budget, no request sent twice."""

import json
import multiprocessing
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities import rank_zero_only
from stage_runs import never, quiet_trainer
from tiny_models import save_tiny_model

sys.path.append(str(Path(__file__).parents[1] / "generation"))
from endpoint import FaultyEndpoint, completion

from callbacks import JudgeSignal
from montessori_pl.batches.sources import DataSources
from montessori_pl.cli.trainer_arguments import one_process
from montessori_pl.data.records import read_records
from montessori_pl.generation import OpenAIBackend, Price, Sampling, TransformersBackend, VLLMBackend
from montessori_pl.generation.request_journal import ANSWERS, Answer
from montessori_pl.models.loading import ModelSource
from montessori_pl.models.student import StudentModule
from montessori_pl.pipeline.recipe import resolve_recipe
from montessori_pl.pipeline.runner import Runner
from montessori_pl.run_directory.progress import ConsoleDisplay
from montessori_pl.run_directory.run_directory import RunDirectory
from montessori_pl.stages import RecordedExamples, ScoreExamples

NUM_EXAMPLES, JUDGEMENTS = 12, 2
PRICE = Price(input=100, output=400)
"""An answer costs $0.003: 10 prompt tokens at 100 and 5 sampled ones at 400 dollars for a million."""


def run_rank(rank: int, run: Path, backbone: str, base_url: str, budget: float) -> None:
    """One of the processes of a run: how it ended goes into a file."""
    rank_zero_only.rank = rank
    engine = OpenAIBackend(
        base_url=base_url, api_key_env=None, max_concurrency=1, price=PRICE, budget=budget, max_retries=0
    )
    signal = JudgeSignal(
        judge=ModelSource("a-model"),
        engine=engine,
        judgements=JUDGEMENTS,
        sampling=Sampling(temperature=0.7, max_tokens=20),
    )
    stages = {
        "recorded": RecordedExamples(str(run.parent / "examples.jsonl")),
        "judged": ScoreExamples("recorded", signal, batch_tokens=40),
    }
    runner = Runner(
        run_directory=RunDirectory(run),
        display=ConsoleDisplay(),
        seed=1,
        data=DataSources("none", str(run.parent / "reference.jsonl")),
        student=lambda: StudentModule(backbone),
        teacher=never,
        backend=never,
        trainer=lambda callbacks, alone, whole_weights, **arguments: quiet_trainer(callbacks, **arguments),
    )
    with runner.locked():
        try:
            runner.run(resolve_recipe(stages, 1), {name: {} for name in stages})
            end = "done"
        except ValueError as error:
            end = str(error)
    (run.parent / f"rank_{rank}.json").write_text(json.dumps([end, engine._directory is not None]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:You are using a custom batch sampler")
def test_two_processes_ask_once_within_one_budget(tmp_path: Path) -> None:
    """$0.03 buy ten answers of 24; with more money the same run asks for the other 14."""
    backbone = save_tiny_model(tmp_path / "model")
    rows = [{"instruction": f"task {number}", "response": "yes"} for number in range(NUM_EXAMPLES)]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reference.jsonl").write_text(json.dumps({"instruction": "another task", "response": "no"}) + "\n")
    context = multiprocessing.get_context("fork")

    def start(endpoint: FaultyEndpoint, budget: float) -> list[Any]:
        endpoint.answer = lambda question, seed: completion(f"Score: {seed % 6}")
        arguments = tmp_path / "run", backbone, endpoint.base_url, budget
        processes = [context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(2)]
        for process in processes:
            process.start()  # before the endpoint has threads, which must not be forked
        return processes

    first, second = FaultyEndpoint(), FaultyEndpoint()
    processes = start(first, budget=0.03)
    with first:
        processes[0].join(120)
        assert json.loads((tmp_path / "rank_0.json").read_text())[0].startswith(
            "the answers of this run have cost $0.03"
        )
        assert processes[1].is_alive(), "it waits for the first one"
        processes[1].kill()
        processes[1].join()
    assert len(first.bodies) == 10
    processes = start(second, budget=1.0)
    with second:
        for process in processes:
            process.join(120)
    ends = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2)]
    assert ends == [["done", True], ["done", False]], "the second one has never opened the journal"
    asked = Counter((body["messages"][-1]["content"], body["seed"]) for body in [*first.bodies, *second.bodies])
    assert set(asked.values()) == {1}
    assert len(asked) == NUM_EXAMPLES * JUDGEMENTS
    assert len(read_records(tmp_path / "run" / "requests" / "judge" / ANSWERS, Answer)) == len(asked)


def test_which_engines_and_signals_work_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = ModelSource("a-model")
    for engine, everywhere in (
        (OpenAIBackend(), False),
        (VLLMBackend(), False),
        (TransformersBackend(), True),
        (None, True),
    ):
        assert ScoreExamples("examples", JudgeSignal(judge=judge, engine=engine)).distributed is everywhere


def test_a_plug_in_that_asks_in_every_process_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with pytest.raises(ValueError, match=r"OpenAIBackend is asked by the first of several .* distributed = False"):
        OpenAIBackend().set_cache_dir(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("devices", "first"), [("auto", 1), (4, 1), (-1, 1), ("4", 1), ([2, 3], [2]), ("2,3", [2]), (None, 1)]
)
def test_a_trainer_of_one_process_takes_the_first_device(devices: Any, first: Any) -> None:
    arguments = {"devices": devices, "num_nodes": 2, "strategy": "ddp"}
    assert one_process(arguments) == {"devices": first, "num_nodes": 1, "strategy": "auto"}
