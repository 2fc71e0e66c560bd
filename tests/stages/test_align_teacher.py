"""AlignTeacher: pairs that cannot be learned, and those that are held out."""

from collections.abc import Callable
from pathlib import Path

import pytest
from stage_runs import write

from montessori_pl.data.records import PreferencePair
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages import AlignTeacher, StageContext, StageError
from montessori_pl.stages.training.alignment_monitor import AlignmentMonitor


def test_pairs_that_are_too_long(tmp_path: Path, context: Callable[..., StageContext]) -> None:
    pair = PreferencePair(id="p", prompt="a" * 30, chosen="b", rejected="c", chosen_id="1", rejected_id="2", margin=1.0)
    directory = write(tmp_path / "pairs" / "pairs.jsonl", [pair])
    with pytest.raises(StageError, match=r"it has nothing to learn: of 1 pairs in .*, none fits within max_length 20"):
        AlignTeacher("pairs", TrainingSettings(lr=1e-3, max_length=20)).run(
            context(inputs={"pairs": directory, "teacher": None})
        )


def test_pairs_that_were_asked_for_in_another_way(tmp_path: Path, context: Callable[..., StageContext]) -> None:
    """The monitor would find no instruction in what the teacher goes on to write."""
    pair = PreferencePair(
        id="p", prompt="a", chosen="b", rejected="c", chosen_id="1", rejected_id="2", margin=1.0, prefill="x"
    )
    directory = write(tmp_path / "pairs" / "pairs.jsonl", [pair])
    with pytest.raises(
        StageError, match=r"it: the completions were asked for in another way .* give it the synthesizer"
    ):
        AlignTeacher("pairs", TrainingSettings(lr=1e-3)).run(context(inputs={"pairs": directory, "teacher": None}))


def pair(number: int, prompt: str, group: str) -> PreferencePair:
    texts = {"chosen": "b", "rejected": "c", "chosen_id": f"{number}b", "rejected_id": f"{number}c"}
    return PreferencePair(id=str(number), prompt=prompt, prompt_id=group, margin=1.0, **texts)


def held_out(pairs: list[PreferencePair], share: float = 0.25) -> set[str]:
    stage = AlignTeacher("pairs", TrainingSettings(lr=1e-3), monitor=AlignmentMonitor(held_out=share))
    prompts = list(dict.fromkeys((one.system, one.prompt, one.history) for one in pairs))
    return stage._held_out(pairs, prompts, seed=0)


def test_pairs_are_held_out_prompt_by_prompt() -> None:
    """Eight prompts of two pairs each, a quarter: both pairs of two of them, also where each was asked twice."""
    found = held_out([pair(n, f"ask {n // 2}", f"group {n}") for n in range(16)])
    assert len(found) == 4
    assert {int(id_) // 2 for id_ in found} == {int(id_) // 2 for id_ in found if int(id_) % 2}


def test_prompts_of_one_text_are_told_apart_by_their_samples() -> None:
    """As Magpie's, which asks nothing."""
    found = held_out([pair(n, "", f"group {n // 2}") for n in range(16)])
    assert len(found) == 4
    assert {int(id_) // 2 for id_ in found} == {int(id_) // 2 for id_ in found if int(id_) % 2}
    assert held_out([pair(n, "", "the one") for n in range(16)]) == set()
