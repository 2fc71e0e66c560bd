"""`fit --preview`: it shows what the run would write first, says what stands in for what, and leaves the run alone."""

import dataclasses
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from montessori_pl.cli.fit import main
from montessori_pl.data.records import Example, Rejection, read_records
from montessori_pl.estimates.preview import PreviewedSample, StagePreview
from montessori_pl.pipeline.preview_page import preview_page, print_preview, visible

SAMPLES = [
    PreviewedSample(prompt="<s>p", completion="c", instruction="i", response="r"),
    PreviewedSample(prompt="p", completion="\x1b[2J<script>", reason="no instruction tag", detail="none"),
    PreviewedSample(prompt="p", completion="d", reason="no instruction tag", detail="none"),
    PreviewedSample(prompt="p", completion="e", reason="too short", detail="1 character"),
]
PREVIEW = StagePreview(
    key="iteration_1/data",
    samples=SAMPLES,
    num_examples=1000,
    usage={"generated_tokens": 40.0, "cost": 0.004},
    seconds=6.0,
    notes=["the base writes"],
)


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.mark.slow
def test_a_preview_of_the_classroom(tiny_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The same completions as those of a run; the aligned teacher has not been trained, and the base writes for it."""
    recipe = tiny_recipe("iter1.yaml")
    run = recipe.parent / "run"
    main(["fit", "--config", str(recipe), "--preview", "3"])
    said = capsys.readouterr().out
    assert not run.exists()
    for stage in ("warmup_data", "probing_data", "training_data"):
        assert re.search(rf"iteration_1/{stage}: \d of 3 completions accepted \(\d+%\)", said)
    waiting = "iteration_1/aligned_teacher has not been trained yet: the base teacher writes here in its place."
    assert said.count(waiting) == 1
    page = (recipe.parent / "run.preview.html").read_text()
    assert "&lt;|user|&gt; Write a new task ." in page
    assert page.count("<tr class=") == 9

    config = recipe.read_text().split("recipe:\n")
    stages = re.split(r"(?m)^(?=  \w+:$)", config[1])
    first = [stage for stage in stages if stage.startswith("  warmup_data")]
    recipe.write_text(f"{config[0]}recipe:\n{''.join(first)}")
    main(["fit", "--config", str(recipe)])
    directory = run / "iteration_1" / "warmup_data"
    texts = {one.id: one.completion for one in read_records(directory / "examples.jsonl", Example)}
    texts |= {one.id: one.text for one in read_records(directory / "rejections.jsonl", Rejection)}
    before = page.partition("<h2>")[2].partition("<h2>")[0].replace("&lt;", "<").replace("&gt;", ">")
    for prompt in range(3):
        assert f"<pre>{texts[f'warmup_data-1-{prompt:05d}-0']}</pre>" in before


def test_not_both(tiny_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(tiny_recipe("self_instruct.yaml")), "--preview", "3", "--dry_run"])
    assert end.value.code == 2
    assert "--dry_run asks no model and --preview does; give one of them" in capsys.readouterr().err


def test_the_yield_and_what_the_stage_takes() -> None:
    """One of four accepted: a thousand examples are four thousand completions, a thousand times these four."""
    assert PREVIEW.verdict() == "1 of 4 completions accepted (25%); rejected: 2 no instruction tag, 1 too short"
    assert PREVIEW.expectation() == (
        "1,000 examples would take about 4,000 completions: 100.0 min at the speed of the preview, 40,000 tokens "
        "written, $4.0000"
    )
    by_prompts = dataclasses.replace(PREVIEW, num_examples=None, num_completions=40, usage={})
    assert by_prompts.expectation().startswith("the stage would take about 40 completions: 60 s at the speed")
    assert dataclasses.replace(PREVIEW, samples=SAMPLES[1:]).expectation() == "", "nobody knows"
    assert dataclasses.replace(PREVIEW, samples=[]).verdict() == "no prompt could be asked"


def test_what_models_write_is_shown_and_does_nothing() -> None:
    assert visible("\ud83d") == "\\ud83d", "half of a pair is no character, and could not be written"
    assert visible("a\nb\tc\x1b[2J\u202e\u2066é") == "a\nb\\tc\\x1b[2J\\u202e\\u2066é"
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    print_preview([PREVIEW], console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in said
    assert "\\x1b[2J<script>" in said
    assert "the base writes" in said
    page = preview_page([PREVIEW], "Preview of <run>")
    assert "<script>" not in page
    assert "\\x1b[2J&lt;script&gt;" in page
    assert "Preview of &lt;run&gt;" in page
