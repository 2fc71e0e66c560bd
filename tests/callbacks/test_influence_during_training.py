"""Measuring influence while training tells the truth and changes nothing."""

import copy
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from stage_runs import quiet_trainer
from tiny_models import save_tiny_model, tiny_tokenizer

from callbacks import InfluenceDuringTraining
from montessori_pl.batches.collate import collate, num_labels
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.influence import AdamW, InfluenceScorer
from montessori_pl.losses import mean_response_loss
from montessori_pl.models.loading import LoraSettings
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages.training.fit import TrainingData

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

SEEN = ("influence_positive_rate", "influence_mean", "reference_loss", "response_token_entropy")
PAIRS = [("say a", "a"), ("why?", "nobody knows."), ("say b", "bb"), ("is it?", "it is."), ("say c", "c"), ("so", "no")]
CHAT = ChatTemplate(tiny_tokenizer())
RENDERED = [
    CHAT.render([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    for question, answer in PAIRS
]


@pytest.fixture
def reference(tmp_path: Path) -> str:
    path = tmp_path / "reference.jsonl"
    rows = [{"instruction": "say d", "response": "d"}, {"instruction": "when?", "response": "now."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def train(tmp_path: Path, *callbacks: Callback, stage_directory: Path | None = None) -> StudentModule:
    """Six optimizer steps over two epochs, two batches each."""
    torch.manual_seed(0)
    student = StudentModule(save_tiny_model(tmp_path / "model"), lora=LoraSettings(r=2, alpha=4, dropout=0.1))
    student.training_settings = TrainingSettings(lr=1e-2, epochs=2, batch_size=2)
    student.stage_directory = stage_directory
    trainer = quiet_trainer(callbacks, max_epochs=2, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    lengths = [len(one.input_ids) for one in RENDERED]
    counts = {"tokens": [num_labels(one) for one in RENDERED]}
    data = TrainingData(RENDERED, lengths, 2, 0, lambda items: collate(items, pad_id=0), counts)
    trainer.fit(student, datamodule=data)
    return student


def test_training_is_the_same_with_it(tmp_path: Path, reference: str) -> None:
    callback = InfluenceDuringTraining(reference, every_n_steps=2)
    plain, measured = train(tmp_path), train(tmp_path, callback)

    assert list(callback.measurements) == [0, 2, 4]
    for (name, one), other in zip(plain.optimized().items(), measured.optimized().values(), strict=True):
        assert torch.equal(one, other), name


class _Watch(Callback):
    """Scores the coming batch exactly, on a copy of the student, with the moments that it has by then."""

    def __init__(self, reference: dict[str, torch.Tensor], at_step: int) -> None:
        self.reference, self.at_step = reference, at_step
        self.expected: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at_step:
            optimizer = trainer.optimizers[0]
            update = AdamW.from_optimizer_state(optimizer.state_dict(), list(pl_module.optimized()), lr=1e-2)
            scorer = InfluenceScorer(copy.deepcopy(pl_module.network), update, [self.reference], method="exact")
            self.expected = [one.centred for one in scorer(batch)]
            with torch.no_grad():
                inputs = {name: self.reference[name] for name in ("input_ids", "attention_mask")}
                logits = copy.deepcopy(pl_module.network).eval()(**inputs).logits
                losses = mean_response_loss(logits, self.reference["labels"])
            self.reference_loss = losses.mean().item()
            tokens = Counter(batch["labels"][batch["labels"] != -100].tolist())
            self.entropy = sum(-n / tokens.total() * math.log(n / tokens.total()) for n in tokens.values())


def test_it_measures_the_coming_batch_with_the_moments_of_the_moment(tmp_path: Path, reference: str) -> None:
    rendered = [
        CHAT.render([{"role": "user", "content": q}, {"role": "assistant", "content": a}])
        for q, a in [("say d", "d"), ("when?", "now.")]
    ]
    monitor = _Watch(collate(rendered, pad_id=0), at_step=4)
    callback = InfluenceDuringTraining(reference, every_n_steps=4, method="exact")
    train(tmp_path, monitor, callback)

    assert len(monitor.expected) == 2
    assert callback.measurements[4]["influence_mean"] == pytest.approx(sum(monitor.expected) / 2, rel=1e-4)
    assert callback.measurements[4]["influence_positive_rate"] == sum(value > 0 for value in monitor.expected) / 2
    assert callback.measurements[4]["reference_loss"] == pytest.approx(monitor.reference_loss, rel=1e-5)
    assert callback.measurements[4]["response_token_entropy"] == pytest.approx(monitor.entropy, rel=1e-5)


def test_it_measures_every_n_steps_and_says_what_that_costs(tmp_path: Path, reference: str) -> None:
    callback = InfluenceDuringTraining(reference, every_n_steps=3)
    train(tmp_path, callback)

    log = (next(tmp_path.rglob("metrics.csv"))).read_text().splitlines()
    column = log[0].split(",").index("influence_mean")
    assert sum(bool(line.split(",")[column]) for line in log[1:]) == 2  # steps 0 and 3
    assert 0 < callback.measurements[3]["influence_share_of_time"] < 1


def test_what_it_has_seen_is_kept_beside_the_stage(tmp_path: Path, reference: str) -> None:
    """A training that goes on in its second epoch measures what is left, and the file is that of an undisturbed one."""
    rows = [{"step": step, **dict.fromkeys(SEEN, 0.5)} for step in (0, 2, 4)]
    path = tmp_path / "stage" / "influence_during_training.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    callback = InfluenceDuringTraining(reference, every_n_steps=2)
    train(tmp_path, callback, stage_directory=path.parent)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in kept] == [0, 2, 4]
    assert kept[0] == rows[0], "what was measured before is not measured again"
    assert kept[1] == {"step": 2, **{name: callback.measurements[2][name] for name in SEEN}}


def test_a_step_of_zero_is_no_rhythm() -> None:
    with pytest.raises(ValueError, match="every_n_steps: expected int >= 1, found 0"):
        InfluenceDuringTraining("classroom/reference", every_n_steps=0)
