"""`init` with a tiny model: what it writes is a recipe that `fit` takes, and mistakes are one sentence."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import LLAMA3_8B, save_configuration, save_tiny_model

from montessori_pl.__main__ import main
from montessori_pl.cli import fit, init
from montessori_pl.cli.common import CommandError
from montessori_pl.cli.fit import planned
from montessori_pl.drafts.choices import Draft
from montessori_pl.drafts.models import look_at
from montessori_pl.drafts.recipe_text import scalar
from montessori_pl.drafts.texts import look_at_texts
from montessori_pl.estimates.devices import Device, devices_named
from montessori_pl.estimates.memory import Peak
from montessori_pl.estimates.seconds import Compute
from montessori_pl.pipeline.resources import Resources, RunPlan

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def files() -> list[str]:
    """A tiny model, eight seed tasks and eighty references, as options."""
    save_tiny_model(Path("model"), max_position_embeddings=1024)
    write("seeds.jsonl", [f"say {letter} and {letter}" for letter in LETTERS[:8]])
    write("reference.jsonl", [f"what comes after {one}{other}" for one in LETTERS[:8] for other in LETTERS[:10]])
    return ["--seed_tasks", "seeds.jsonl", "--reference", "reference.jsonl", "--student", "model"]


def write(name: str, instructions: list[str]) -> None:
    rows = [json.dumps({"instruction": one, "response": one[-1]}) for one in instructions]
    Path(name).write_text("\n".join(rows) + "\n")


def recipe(name: str = "recipe.yaml") -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(Path(name).read_text())
    return content


@pytest.mark.slow
def test_model_twice_on_this_cpu(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    seeds = Path("seeds.jsonl")
    rows = [json.loads(line) | {"kind": "a column of theirs"} for line in seeds.read_text().splitlines()]
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["init", *files, "--teacher", "model", "--hours", "0.5"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("data.seed_tasks: columns that are not read: kind"), "once, however often it plans"
    assert said[1].startswith("recipe.yaml is written: ")
    content = recipe()
    assert content["data"] == {
        "seed_tasks": "seeds.jsonl",
        "reference": "reference.jsonl[:40]",
        "test": "reference.jsonl[40:]",
    }
    assert content["student"]["init_args"]["base_dtype"] == "float32"
    assert content["generation"] == {"class_path": "montessori_pl.generation.TransformersBackend"}
    writing = content["recipe"]["warmup_data"]["init_args"]
    assert writing["synthesizer"]["init_args"]["answer_format"] == "numbered_list", "a weak teacher"
    assert "instruction_filter" not in writing, "the default keeps all of the seed tasks"
    assert "ExactMatch" in Path("recipe.yaml").read_text(), "answers are one letter"
    found = planned(["fit", "--config", "recipe.yaml", "--dry_run"])
    assert found.seconds <= 0.8 * 0.5 * 3600
    assert not found.too_large()
    assert not Path("checkpoints").exists()


@pytest.mark.slow
def test_endpoint(files: list[str]) -> None:
    url = ["--base_url", "http://localhost:8000/v1", "--price", "0.5", "2"]
    main(["init", *files, "--teacher", "some: model", *url, "--output", "mine.yaml"])
    content = recipe("mine.yaml")
    writer = content["teachers"]["writer"]
    assert writer["backbone"] == "some: model"
    assert writer["generation"]["init_args"] == {
        "base_url": "http://localhost:8000/v1",
        "api_key_env": None,
        "price": {"input": 0.5, "output": 2.0},
    }
    assert "teacher" not in content
    assert [one["class_path"] for one in content["recipe"].values()] == [
        *("Synthesize", "TrainStudent", "Synthesize", "ScoreExamples", "SelectBest", "TrainStudent", "Evaluate")
    ]
    assert content["run"] == "checkpoints/mine"


@pytest.mark.slow
def test_gpus_elsewhere(files: list[str]) -> None:
    """The tiny student is trained whole there, and vLLM writes on all of them."""
    main(["init", *files, "--teacher", "model", "--gpus", "2x24"])
    content = recipe()
    assert content["trainer"]["precision"] == "bf16-mixed"
    assert content["trainer"]["devices"] == 2
    assert content["recipe"]["trained"]["init_args"]["all_weights"] is True
    assert content["student"]["init_args"]["base_dtype"] == "float32"
    assert content["generation"]["init_args"]["data_parallel_size"] == 2
    assert content["recipe"]["warmup_data"]["init_args"]["num_examples"] == 1000, "the paper's, in six hours"


@pytest.mark.slow
def test_eight_billion_on_one_gpu_of_24_gb(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Adapters on bfloat16, for all weights have no room; the models are there by their configurations alone."""
    save_configuration(Path("model"), LLAMA3_8B)
    Path("model/model.safetensors").unlink()
    main(["init", *files, "--teacher", "model", "--gpus", "1x24", "--hours", "24"])
    content = recipe()
    assert content["student"]["init_args"]["base_dtype"] == content["teacher"]["init_args"]["base_dtype"] == "bfloat16"
    assert content["recipe"]["trained"]["init_args"]["all_weights"] is False
    assert content["recipe"]["warmup_data"]["init_args"]["synthesizer"]["init_args"]["answer_format"] == "tags"
    assert "VLLMBackend" in content["generation"]["class_path"]
    found = planned(["fit", "--config", "recipe.yaml", "--dry_run", "--gpus", "1x24"])
    assert not found.too_large()
    assert found.seconds <= 0.8 * 24 * 3600
    with pytest.raises(SystemExit):
        main(["init", *files, "--teacher", "model", "--gpus", "1x12", "--output", "small.yaml"])
    assert "does not fit: it needs" in capsys.readouterr().err
    assert not Path("small.yaml").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--hours", "0"], "--hours must be more than 0"),
        (["--gpus", "3xH1"], "no GPUs are called '3xH1'"),
        (["--price", "1", "2"], "give its --base_url, too"),
        (["--student", "nowhere/to/be"], "error: --student: "),
        (["--teacher", "gpt-9"], "for a model behind an endpoint give --base_url, too"),
        (["--reference", "none.jsonl"], "data.reference: "),
        (["--output", "away/recipe.yaml"], "there is no directory away"),
        (["--output", "seeds.jsonl"], "seeds.jsonl exists; remove it, or choose another file with --output"),
        (["--test", "reference.jsonl"], "share 80 instructions"),
        pytest.param(["--hours", "0.000001"], "the smallest run that teaches anything", marks=pytest.mark.slow),
    ],
)
def test_mistakes(files: list[str], options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().iterdir())
    with pytest.raises(SystemExit) as end:
        main(["init", "--teacher", "model", *files, *options])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert sorted(Path().iterdir()) == before


def test_counts_follow_the_hours(files: list[str]) -> None:
    """A machine on which the paper's counts take 100 hours, and the evaluation one more."""
    draft = a_draft()
    for hours, share in ((1000, 1.0), (50, 0.39), (5, 0.03)):
        found, plan = init.fit_to(draft, hours, lambda one: a_plan(one, of_counts=100 * 3600, fixed=3600))
        assert plan.seconds <= 0.8 * hours * 3600
        assert found.scale == pytest.approx(share, rel=0.2)
    with pytest.raises(CommandError, match="the smallest run that teaches anything"):
        init.fit_to(draft, 1, lambda one: a_plan(one, of_counts=100 * 3600, fixed=3600))


def test_adapter_where_all_weights_do_not_fit(files: list[str]) -> None:
    """And a sentence where that does not fit, either."""
    draft = dataclasses.replace(a_draft(), device=devices_named("1x24"))
    assert draft.all_weights
    found, _ = init.fit_to(draft, 10, lambda one: a_plan(one, 100, 1, too_large=one.all_weights))
    assert not found.all_weights
    with pytest.raises(
        CommandError, match=r"trained does not fit: it needs 1000\.0 GB, most of it weights, and 1 x GPU of 24 GB"
    ):
        init.fit_to(draft, 10, lambda one: a_plan(one, 100, 1, too_large=True))


def a_draft() -> Draft:
    return Draft(
        student=look_at("model"),
        teacher=look_at("model"),
        texts=look_at_texts("seeds.jsonl", "reference.jsonl", None),
        device=devices_named("H100"),
        vllm=True,
        run="run",
    )


def a_plan(draft: Draft, of_counts: float, fixed: float, too_large: bool = False) -> RunPlan:
    """Of two stages, of which one takes so many seconds with the paper's counts."""
    trained = Resources(None, Compute(0, of_counts * draft.scale), Peak(weights=10**12), not too_large)
    evaluation = Resources(None, Compute(0, fixed), None)
    resources = {"iteration_1/trained": trained, "iteration_1/evaluation": evaluation}
    return RunPlan((), resources, draft.device, {})


@pytest.mark.parametrize(
    "text", ["a.jsonl[:3]", "yes", "1e3", "~", "a: b", "# c", "it's", "$x", "ä", 'say "no"', "a b"]
)
def test_scalars(text: str) -> None:
    assert yaml.safe_load(f"key: {scalar(text)}  # why") == {"key": text}


def test_lengths_and_filters_of_files(files: list[str]) -> None:
    """Seed tasks that the default filters would reject change the filters; four of a hundred words are long."""
    write("odd.jsonl", ["draw a map", "hi", "- another one", "x" * 5000])
    texts = look_at_texts("odd.jsonl", "reference.jsonl[:30]", None)
    assert texts.filter_settings() == {
        "keywords": [],
        "min_characters": 2,
        "max_characters": 10_000,
        "allow_leading_punctuation": True,
    }
    assert (texts.test, texts.split, texts.num_references) == (None, False, 30)
    assert (texts.instructions(len).median, texts.instructions(len).long) == (12, 5000), "of 2, 10, 13 and 5000"
    assert texts.responses(len).median == 1


@pytest.mark.parametrize("name", ["reference.jsonl", "a directory [1]/reference.jsonl"])
def test_a_test_set_is_held_out_where_rows_differ(files: list[str], name: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    different = [f"add {n} and {n + 1} and tell me the sum of both of them" for n in range(80)]
    write(name, different)
    seeds = files[files.index("--seed_tasks") + 1]
    texts = look_at_texts(seeds, name, None)
    assert (texts.reference, texts.test, texts.split) == (f"{name}[:40]", f"{name}[40:]", True)
    assert len(texts.examples) == texts.num_references == 40

    write(name, [*different[:-1], different[0]])
    texts = look_at_texts(seeds, name, None)
    assert (texts.reference, texts.test, texts.split, texts.num_references) == (name, None, False, 79)
    assert "are alike" in texts.why_no_test
    with pytest.raises(ValueError, match="share 1 instruction"):
        look_at_texts(seeds, f"{name}[:40]", f"{name}[40:]")


@pytest.mark.slow
def test_recipe_runs_to_its_end_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classroom's models, on a machine that is said to be so slow that the smallest counts just fit."""
    slow = Device("a slow CPU", memory=8e9, flops=2e9, bandwidth=2e9, is_cpu=True)
    monkeypatch.setattr(init, "this_machine", lambda: slow)
    monkeypatch.setattr(fit, "this_machine", lambda: slow)
    data = {"--seed_tasks": "seed_tasks", "--reference": "reference[:24]", "--test": "test[:24]"}
    options = [word for option, name in data.items() for word in (option, f"classroom/{name}")]
    models = ["--student", "classroom/student", "--teacher", "classroom/teacher"]
    main(["init", *models, *options, "--hours", "0.01", "--answer_format", "tags", "--prompt", "classroom"])
    main(["fit", "--config", "recipe.yaml"])
    summary = json.loads(Path("checkpoints/recipe/summary.json").read_text())
    assert set(summary["students"]) == {"base", "warmup", "trained"}
