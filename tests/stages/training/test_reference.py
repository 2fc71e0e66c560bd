"""The reference policy's log-probabilities: computed once for each pair, kept, and used in every epoch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from stage_runs import Killed, quiet_trainer, stage_context, write
from tiny_models import save_tiny_model, tiny_tokenizer

from montessori_pl.batches.collate import collate_pairs
from montessori_pl.batches.encoding import encode_pairs
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import PreferencePair
from montessori_pl.losses import sequence_log_probabilities
from montessori_pl.models.dpo import DPOModule
from montessori_pl.models.loading import LoraSettings, ModelSource, load_model
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages import AlignStudent
from montessori_pl.stages.training.reference import REFERENCE

pytestmark = pytest.mark.filterwarnings(r"ignore:.*:UserWarning:lightning\..*")
TRAINING = TrainingSettings(lr=1e-2, epochs=3, batch_size=2, schedule="constant", checkpoint_every_n_steps=1)
PAIRS = [
    PreferencePair(
        id=str(number),
        prompt="say " + "it " * number,
        chosen="yes" * (1 + number),
        rejected="no",
        chosen_id="c",
        rejected_id="r",
        margin=1.0,
    )
    for number in range(5)
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


class Counting(Callback):
    """Counts passes of the reference policy, and kills at one of them or before a batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_pass: int = 0, at_batch: int = 0) -> None:
        self.passes, self.batches, self.at_batch = 0, 0, at_batch
        whole = DPOModule.reference_log_probabilities

        def counted(module: DPOModule, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            self.passes += 1
            if self.passes == at_pass:
                raise Killed
            return whole(module, batch)

        monkeypatch.setattr(DPOModule, "reference_log_probabilities", counted)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches += 1
        if self.batches == self.at_batch:
            raise Killed


Align = Callable[..., Path]


@pytest.fixture
def align(backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Align:
    """One session of the stage; returns its directory, and keeps the counts in `align.seen`."""
    pairs = write(tmp_path / "pairs" / "pairs.jsonl", PAIRS)

    def run(name: str, lora: LoraSettings | None, **kill: int) -> tuple[Path, Counting]:
        with monkeypatch.context() as patch:
            counting = Counting(patch, **kill)
            torch.manual_seed(0)

            def trainer(callbacks: list[Callback], **arguments: Any) -> Trainer:
                return quiet_trainer([counting, *callbacks], **arguments)

            context = stage_context(
                tmp_path / name,
                inputs={"pairs": pairs, "student": None},
                student=lambda: StudentModule(backbone, lora=lora),
                trainer=trainer,
            )
            stage = AlignStudent("pairs", TRAINING, beta=0.3)
            try:
                stage.run(context)
            except Killed:
                pass
            else:
                assert not kill
        return context.directory, counting

    return run


@pytest.mark.parametrize("lora", [LoraSettings(r=2, alpha=4, dropout=0.1), None], ids=["adapter", "whole"])
def test_once_for_each_pair(align: Align, backbone: str, lora: LoraSettings | None) -> None:
    """What stands in the file is what the model before says, and no epoch computes it again."""
    directory, seen = align("it", lora)
    assert (seen.passes, seen.batches) == (3, 9)
    rows = [json.loads(line) for line in (directory / REFERENCE).read_text().splitlines()]
    assert [row["pair"] for row in rows] == [0, 1, 2, 3, 4]
    encoded = encode_pairs(PAIRS, ChatTemplate(tiny_tokenizer()), 64)
    model = load_model(ModelSource(backbone))
    with torch.no_grad():
        for row, pair in zip(rows, encoded, strict=True):
            batch = collate_pairs([pair], 0)
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            found = torch.tensor([row["chosen"], row["rejected"]])
            torch.testing.assert_close(found, sequence_log_probabilities(logits, batch["labels"]), rtol=1e-5, atol=1e-5)
    assert not list(directory.glob("*.part*"))


@pytest.mark.slow
@pytest.mark.parametrize("kill", [{"at_pass": 1}, {"at_pass": 3}, {"at_batch": 1}, {"at_batch": 6}])
def test_a_killed_training_computes_what_is_left(align: Align, kill: dict[str, int]) -> None:
    """And ends with the same files."""
    whole, _ = align("whole", LoraSettings(r=2, alpha=4))
    killed, _ = align("killed", LoraSettings(r=2, alpha=4), **kill)
    for part in killed.glob("*.part0.jsonl"):  # a line that was being written
        part.write_bytes(part.read_bytes() + b'{"pair": 9')
    again, seen = align("killed", LoraSettings(r=2, alpha=4))
    assert seen.passes == {1: 3, 3: 1}.get(kill.get("at_pass", 0), 0)
    for name in (REFERENCE, "weights/adapter_model.safetensors"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()


def test_a_reference_that_is_no_number_is_refused(align: Align, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        DPOModule, "reference_log_probabilities", lambda module, batch: torch.full((len(batch["labels"]),), torch.nan)
    )
    with pytest.raises(ValueError, match="no numbers"):
        align("it", LoraSettings(r=2, alpha=4))
