"""One round of GRPO: what it learns, from where it goes on, and how a reward that is hacked is noticed."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from stage_runs import Killed, quiet_trainer, stage_context, write
from tiny_models import save_tiny_model

from montessori_pl.data.records import Example, Score
from montessori_pl.generation.base import Sampling
from montessori_pl.generation.transformers_backend import TransformersBackend
from montessori_pl.losses import IGNORED
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.grpo import GRPOModule
from montessori_pl.models.loading import LoraSettings, save_weights
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages import ReinforceTeacher, StageError
from montessori_pl.stages.training.alignment_monitor import EVALUATIONS, AlignmentMonitor
from montessori_pl.stages.training.reference import SAMPLED
from montessori_pl.synthesis.base import SelfInstruct
from montessori_pl.synthesis.collapse import CollapseLimits

pytestmark = pytest.mark.filterwarnings(r"ignore:.*:UserWarning:lightning\..*")
SEED = 5
LORA = LoraSettings(r=2, alpha=4, dropout=0.1)
TRAINING = TrainingSettings(lr=1e-2, epochs=3, batch_size=4, schedule="constant", checkpoint_every_n_steps=1)
WORDS = ["yes it is", "no", "it is so", "never"]
EXAMPLES = [
    Example(
        id=f"{prompt}/{sample}",
        instruction=word,
        response="r",
        prompt_id=f"p{prompt}",
        prompt="say " + "it " * prompt,
        completion=word,
    )
    for prompt in range(3)
    for sample, word in enumerate(WORDS)
]
ANYTHING = SelfInstruct(prompt="new_task", answer_format="whole_completion", num_written_shots=0)
Reinforce = Callable[..., dict[str, Any]]


def scores(reward: Callable[[Example], float]) -> list[Score]:
    return [Score(id=example.id, value=reward(example)) for example in EXAMPLES]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


class KillAt(Callback):
    """Kills before a batch, counted from 1 over all epochs."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            raise Killed


@pytest.fixture
def reinforce(backbone: str, tmp_path: Path) -> Reinforce:
    """One session of the stage in a directory of this name; returns its metrics."""

    def run(
        name: str,
        reward: Callable[[Example], float] = lambda example: len(example.completion),
        previous: Path | None = None,
        kill: int = 0,
        training: TrainingSettings = TRAINING,
        written: Callable[[Example], Example] = lambda example: example,
        **settings: Any,
    ) -> dict[str, Any]:
        lightning.seed_everything(SEED, verbose=False)
        teacher = f"{backbone} + {previous.name}" if previous is not None else backbone
        own = [written(dataclasses.replace(example, teacher=teacher)) for example in EXAMPLES]
        examples = write(tmp_path / "examples" / "examples.jsonl", own)
        scored = write(tmp_path / "scores" / "scores.jsonl", scores(reward))

        def trainer(callbacks: list[Callback], **arguments: Any) -> Trainer:
            return quiet_trainer([KillAt(kill), *callbacks], **arguments)

        context = stage_context(
            tmp_path / name,
            seed=SEED,
            inputs={"examples": examples, "scores": scored, "teacher": previous},
            teacher=lambda: TeacherDPOModule(backbone, lora=LORA),
            backend=TransformersBackend,
            trainer=trainer,
        )
        settings = {"monitor": None, "synthesizer": ANYTHING, **settings}
        stage = ReinforceTeacher("examples", "scores", training, **settings)
        return stage.run(context)

    return run


def probabilities(backbone: str, weights: Path | None) -> dict[str, float]:
    """Log-probability of each completion, in nats, under a teacher."""
    from montessori_pl.batches.collate import collate_completions
    from montessori_pl.batches.encoding import encode_completions
    from montessori_pl.models.loading import load_chat_template

    module = TeacherDPOModule(backbone, lora=LORA)
    if weights is not None:
        module.source = module.source.__class__(backbone, weights=weights)
    module.configure_model()
    items = encode_completions(
        EXAMPLES, dict.fromkeys((e.id for e in EXAMPLES), 0.0), load_chat_template(module.source), 99
    )
    with torch.no_grad():
        found = module.token_log_probabilities(collate_completions(items, 0)).sum(dim=1)
    return dict(zip((example.id for example in EXAMPLES), found.tolist(), strict=True))


def test_what_scored_well_becomes_likelier(reinforce: Reinforce, backbone: str, tmp_path: Path) -> None:
    """Within each prompt, against the other completions of it."""
    metrics = reinforce("it", kl_weight=0.0)
    assert (metrics["completions"], metrics["left_out_as_too_long"], metrics["steps"]) == (12, 0, 9)
    before, after = probabilities(backbone, None), probabilities(backbone, tmp_path / "it" / "weights")
    for prompt in range(3):
        moved = {word: after[f"{prompt}/{n}"] - before[f"{prompt}/{n}"] for n, word in enumerate(WORDS)}
        assert moved["yes it is"] > moved["no"]
        assert moved["it is so"] > moved["never"]


def test_both_policies_are_kept_token_by_token(reinforce: Reinforce, backbone: str, tmp_path: Path) -> None:
    """The first round was sampled by the base; the second one by the first one's teacher, and is held to the base."""
    reinforce("first")
    first = [json.loads(line) for line in (tmp_path / "first" / SAMPLED).read_text().splitlines()]
    assert [row["completion"] for row in first] == list(range(12))
    assert all(row["sampled"] == pytest.approx(row["reference"], abs=1e-5) for row in first)
    base = probabilities(backbone, None)
    assert [math.fsum(row["reference"]) for row in first] == pytest.approx(list(base.values()), abs=1e-4)

    reinforce("second", previous=tmp_path / "first")
    second = [json.loads(line) for line in (tmp_path / "second" / SAMPLED).read_text().splitlines()]
    own = probabilities(backbone, tmp_path / "first" / "weights")
    assert [math.fsum(row["sampled"]) for row in second] == pytest.approx(list(own.values()), abs=1e-4)
    assert [math.fsum(row["reference"]) for row in second] == pytest.approx(list(base.values()), abs=1e-4)
    assert math.fsum(base.values()) != pytest.approx(math.fsum(own.values()), abs=1e-2)


def test_before_its_first_step_a_ratio_is_one(backbone: str) -> None:
    """Then the gradient is that of the advantages alone, and nothing is clipped."""
    module = GRPOModule(TeacherDPOModule(backbone, lora=LORA), (0.2, 0.2), 0.1)
    module.configure_model()
    ids = torch.tensor([[1, 5, 6, 7], [1, 6, 5, 9]])
    labels = ids.masked_fill(torch.tensor([[True, True, False, False]] * 2), IGNORED)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    with torch.no_grad():
        known = torch.nn.functional.pad(module.token_log_probabilities(batch), (1, 0))
    batch |= {"sampled": known, "reference": known, "advantages": torch.tensor([2.0, -1.0])}
    output = module.policy_gradient(batch)
    torch.testing.assert_close(output.loss.sum(dim=1), torch.tensor([-4.0, 2.0]), rtol=1e-5, atol=1e-5)
    assert output.clipped.sum() == 0
    assert output.divergence.abs().max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kill", [1, 2, 5, 9])
def test_a_killed_round_goes_on_to_the_same_bytes(reinforce: Reinforce, tmp_path: Path, kill: int) -> None:
    monitor = AlignmentMonitor(held_out=0.0, every_n_steps=2, num_samples=4, sampling=Sampling(max_tokens=6))
    whole = reinforce("whole", monitor=monitor)
    with pytest.raises(Killed):
        reinforce("killed", monitor=monitor, kill=kill)
    assert reinforce("killed", monitor=monitor) == whole
    for name in (SAMPLED, EVALUATIONS, "weights/adapter_model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_reward_that_is_hacked_is_stepped_back_from(reinforce: Reinforce, tmp_path: Path, backbone: str) -> None:
    """Whatever is short is rewarded, at a rate that makes the teacher write nothing else: the round is not taken."""
    hacked = TrainingSettings(lr=0.3, epochs=6, batch_size=4, schedule="constant")
    limits = CollapseLimits(parsed_rate=None, token_entropy=None, first_word_entropy=None, distinct_rate=None)
    monitor = AlignmentMonitor(
        held_out=0.0, every_n_steps=3, num_samples=8, sampling=Sampling(max_tokens=6), limits=limits
    )
    metrics = reinforce("it", lambda example: -len(example.completion), training=hacked, monitor=monitor, kl_weight=0.0)
    assert metrics["monitor"]["selected_step"] == 0
    assert "divergence" in metrics["warnings"][-1]
    assert "the teacher as it was before alignment is kept" in metrics["warnings"][-1]
    kept, base = probabilities(backbone, tmp_path / "it" / "weights"), probabilities(backbone, None)
    assert kept == pytest.approx(base, abs=1e-4)


def test_rounds_together_may_go_no_farther_than_one(reinforce: Reinforce, tmp_path: Path, backbone: str) -> None:
    """A round that begins beyond the limits, measured from the base, takes no step."""
    far = GRPOModule(TeacherDPOModule(backbone, lora=LORA), (0.2, 0.2), 0.0)
    far.configure_model()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in far.optimized().values():
            parameter += 0.3 * torch.randn_like(parameter)
    save_weights(far.language_model, tmp_path / "before" / "weights")
    monitor = AlignmentMonitor(held_out=0.0, every_n_steps=3, num_samples=8, sampling=Sampling(max_tokens=6))
    gentle = TrainingSettings(lr=1e-4, epochs=2, batch_size=4, schedule="constant")
    metrics = reinforce("it", previous=tmp_path / "before", training=gentle, monitor=monitor)
    rows = [json.loads(line) for line in (tmp_path / "it" / EVALUATIONS).read_text().splitlines()]
    assert [(row["step"], "of_base" in row) for row in rows[:2]] == [(0, True), (0, False)]
    assert rows[0]["divergence"] == pytest.approx(0, abs=1e-5)
    assert rows[1]["divergence"] > 0.3
    assert metrics["monitor"]["selected_step"] == 0
    assert metrics["monitor"]["chosen"]["divergence"] == rows[1]["divergence"], "of the teacher that is kept"
    assert "the teacher of the round before, which is beyond them itself, is kept" in metrics["warnings"][-1]
    name = "weights/adapter_model.safetensors"
    assert (tmp_path / "it" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_what_another_teacher_wrote_is_left_out(reinforce: Reinforce, tmp_path: Path) -> None:
    """As that of a guard's fallback; and nothing is learned where nobody of the stage's teacher wrote anything."""

    def mixed(example: Example) -> Example:
        return dataclasses.replace(example, teacher="other") if example.prompt_id == "p1" else example

    metrics = reinforce("it", written=mixed)
    assert (metrics["completions"], metrics["left_out_as_written_by_others"]) == (8, 4)
    with pytest.raises(StageError, match=r"and 'examples' was written by other; let the teacher that has written"):
        reinforce("foreign", written=lambda example: dataclasses.replace(example, teacher="other"))
    with pytest.raises(StageError, match=r"the completions of 'examples' are responses"):
        reinforce("responses", written=lambda example: dataclasses.replace(example, prompt=example.instruction))


def test_nothing_to_learn_is_one_sentence(reinforce: Reinforce) -> None:
    short = TrainingSettings(lr=1e-2, max_length=2)
    with pytest.raises(StageError, match=r"of 12 examples, 12 have a score beside another one .* none of these fits"):
        reinforce("it", training=short)
    with pytest.raises(ValueError, match="there are no pairs here that could be held out: set it to 0"):
        ReinforceTeacher("examples", "scores", TRAINING, monitor=AlignmentMonitor())
