"""The command `export`: which stage it takes, what it says, and a run that `fit` has made."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_from_disk
from hand_made import EXAMPLES, PAIRS, Export, HandMade, rows

from montessori_pl.__main__ import main


class TestChoice:
    """Which stage is exported, and where to."""

    def test_last_finished_stage_that_holds_what_the_format_takes(self, run: HandMade, said: Export) -> None:
        place = "iter1/export/iteration_1"
        assert said("iter1") == f"iteration_1/data: 4 examples as messages in {place}/data-messages\n"
        assert said("iter1", "--format", "dpo") == (
            "iteration_1/preferences: 2 pairs (2 left out: a completion was cut at its token limit) as dpo in "
            f"{place}/preferences-dpo\n"
        )

    def test_name_and_iteration(self, run: HandMade, said: Export) -> None:
        run.add("iteration_2/data", "Synthesize", {"examples": EXAMPLES[:1]}, {})
        run.add("iteration_2/other", "Synthesize", {"examples": EXAMPLES[:3]}, {})
        run.begin("iteration_3/data", "Synthesize", {}, [])
        for arguments, key in (
            ((), "iteration_2/other"),
            (("--stage", "data"), "iteration_2/data"),
            (("--stage", "data", "--iteration", "1"), "iteration_1/data"),
            (("--iteration", "1"), "iteration_1/data"),
            (("--stage", "outside"), "iteration_1/outside"),
        ):
            assert said("iter1", *arguments, "--output", "out").startswith(f"{key}: ")
            shutil.rmtree("out")

    def test_an_empty_directory_may_be_there(self, run: HandMade, said: Export) -> None:
        Path("out").mkdir()
        said("iter1", "--output", "out")
        assert {path.name for path in Path("out").iterdir()} == {"train.jsonl", "dataset_info.json", "README.md"}

    def test_pairs_that_nobody_scored(self, said: Export) -> None:
        """As a stage of somebody else's may leave them."""
        HandMade("other").add("iteration_1/given", "Given", {"pairs": PAIRS}, {})
        said("other", "--format", "dpo", "--output", "out")
        assert "| not recorded | 4 |" in Path("out/README.md").read_text()


HOLD = "stages of iter1 that have finished and hold"


@pytest.mark.usefixtures("run")
class TestMistakes:
    """What a user can get wrong, each with the sentence that says so."""

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (
                ["iter2"],
                "there is no directory iter2; {here} holds iter1/; correct the path",
            ),
            (
                ["iter1", "--stage", "dat"],
                f"--stage dat names no stage that has begun and holds examples; {HOLD} examples: iteration_1/outside, "
                "iteration_1/data",
            ),
            (
                ["iter1", "--stage", "data", "--iteration", "2"],
                "--stage data and --iteration 2 names no stage that has begun and holds examples; "
                f"{HOLD} examples: iteration_1/outside, iteration_1/data",
            ),
            (
                ["iter1", "--iteration", "2", "--format", "dpo"],
                f"--iteration 2 names no stage that has begun and holds pairs; {HOLD} pairs: iteration_1/preferences",
            ),
            (
                ["iter1", "--stage", "preferences"],
                "iteration_1/preferences holds no examples but pairs, choose another format; "
                f"{HOLD} examples: iteration_1/outside, iteration_1/data",
            ),
            (
                ["iter1", "--stage", "data", "--format", "dpo"],
                "iteration_1/data holds no pairs but examples, choose another format; "
                f"{HOLD} pairs: iteration_1/preferences",
            ),
            (
                ["iter1", "--stage", "trained"],
                "iteration_1/trained has not finished, run `fit` again to go on; "
                f"{HOLD} examples: iteration_1/outside, iteration_1/data",
            ),
            (
                ["iter1", "--output", "iter1"],
                "iter1 exists and is not empty; remove it, or choose another directory with --output",
            ),
            (
                ["iter1", "--output", "iter1/manifest.json"],
                "iter1/manifest.json exists and is not empty; remove it, or choose another directory with --output",
            ),
            (
                [],
                "the following arguments are required: RUN; `python -m montessori_pl export --help` lists what exists",
            ),
        ],
    )
    def test_sentence(self, arguments: list[str], sentence: str, mistake: Export) -> None:
        assert mistake(*arguments) == sentence.format(here=Path.cwd())

    def test_run_without_examples(self, mistake: Export) -> None:
        HandMade("new").begin("iteration_1/data", "Synthesize", {}, [])
        assert mistake("new") == (
            "there are no examples to export yet; stages of new that have finished and hold examples: none"
        )

    def test_format(self, mistake: Export) -> None:
        assert mistake("iter1", "--format", "csv").startswith("argument --format: invalid choice: 'csv'")

    def test_place_that_cannot_be_written(self, mistake: Export) -> None:
        """As in a run directory that is read-only."""
        Path("iter1/export").touch()
        assert mistake("iter1") == (
            "iter1/export/iteration_1/data-messages cannot be written (Not a directory); choose another directory with "
            "--output"
        )

    @pytest.mark.parametrize(
        ("damaged", "format"),
        [
            ("data/examples.jsonl", "alpaca"),
            ("data/rejections.jsonl", "alpaca"),
            ("influence/scores.jsonl", "hf"),
            ("preferences/pairs.jsonl", "dpo"),
            ("data/examples.jsonl", "dpo"),
            ("data/metrics.json", "alpaca"),
        ],
    )
    def test_damaged_file(self, damaged: str, format: str, mistake: Export) -> None:
        path = Path("iter1/iteration_1", damaged)
        path.write_text(path.read_text() + "\n")
        key = f"iteration_1/{path.parent.name}"
        assert mistake("iter1", "--format", format) == (
            f"{path} is not what stage {key} wrote; restore the file, or delete {path.parent} to do the stage again"
        )

    def test_pairs_whose_examples_were_done_again(self, run: HandMade, mistake: Export) -> None:
        """The card would tell of other examples than those that the pairs were made of."""
        shutil.rmtree("iter1/iteration_1/data")
        run.add("iteration_1/data", "Synthesize", {"examples": EXAMPLES[:2]}, {})
        assert mistake("iter1", "--format", "dpo") == (
            "iteration_1/preferences was made of the examples of iteration_1/data, which is gone or was done again "
            "since; delete iter1/iteration_1/preferences and run `fit` again to make the pairs again"
        )

    def test_nothing_left(self, run: HandMade, mistake: Export) -> None:
        run.add("iteration_2/preferences", "BuildPreferences", {"pairs": [PAIRS[1], PAIRS[3]]}, {})
        assert mistake("iter1", "--format", "dpo") == (
            "iteration_2/preferences leaves no pairs to export, for all 2 hold a completion that was cut or answers "
            "no user turn; choose another stage"
        )
        run.add("iteration_2/asked", "Synthesize", {"examples": [replace(EXAMPLES[0], response="")]}, {})
        assert mistake("iter1") == (
            "iteration_2/asked leaves no examples to export, for none of 1 instructions has a response; let a stage "
            "`GenerateResponses` answer them first, or choose another stage"
        )


def test_command_is_quick(run: HandMade) -> None:
    """It imports neither Lightning nor models, nor anything of their size."""
    program = (
        "import sys; from montessori_pl.__main__ import main; main(sys.argv[1:])\n"
        "big = {'torch', 'lightning', 'transformers', 'jsonargparse', 'numpy', 'datasets', 'wandb', 'rich'}\n"
        "print(sorted(big & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "export", "iter1"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_export_of_a_run(tiny_recipe: Callable[..., Path], said: Export) -> None:
    """What `fit` itself has written: its manifest, its settings and its scores are found."""
    recipe = tiny_recipe()
    content = yaml.safe_load(recipe.read_text())
    stages = ("warmup_data", "warmup", "probing_data", "influence", "preferences")
    content["recipe"] = {name: content["recipe"][name] for name in stages}
    content["recipe"]["preferences"]["init_args"]["scores"] = "influence"
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))
    main(["fit", "--config", str(recipe)])
    said_by_fit = said(content["run"], "--format", "hf", "--output", "hf")
    assert "iteration_1/probing_data: 16 examples as hf in hf" in said_by_fit
    dataset: Dataset = load_from_disk("hf")["train"]
    assert all(value is not None for value in dataset["iteration_1/influence"])
    said(content["run"], "--format", "dpo", "--output", "dpo")
    card = " ".join(Path("dpo/README.md").read_text(encoding="utf-8").split())
    written = len(rows(Path(content["run"], "iteration_1/preferences/pairs.jsonl")))
    assert len(rows(Path("dpo/train.jsonl"))) == written
    assert f"| `classroom/teacher` | {2 * written} |" in card
    assert "above 0.95 with a seed or an earlier instruction" in card
    assert "| `iteration_1/influence` | `InfluenceProbeCallback` | `iteration_1/warmup` | 16 |" in card
