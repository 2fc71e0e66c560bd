"""The influence callback inside `Trainer.predict`, against a copy of the student that takes a real optimizer step.

The student is a tiny Llama with an adapter, after two steps of AdamW that a checkpoint holds.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_models import save_tiny_model, tiny_tokenizer
from torch import Tensor, nn

from callbacks import InfluenceProbeCallback
from montessori_pl.chat import ChatFormat, Rendered
from montessori_pl.data import collate
from montessori_pl.models import LoraSettings
from montessori_pl.optimization import TrainingSettings
from montessori_pl.records import Example, Score, read_records
from montessori_pl.signals import ScoringData
from montessori_pl.stages.training import TrainingData
from montessori_pl.student import StudentModule

# Lightning's advice on loaders, which the command line silences too.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You are using a custom batch sampler"),
]

PEAK = 0.05
TRAINED = [("say a", "a"), ("why?", "nobody knows."), ("is it?", "it is")]
PROBED = [("what is it?", "it is a."), ("ask", "why? why?"), ("b", "c")]
REFERENCE = [
    ("a long question, is it not?", "so it is."),
    ("x", "y"),
    ("why is it so?", "nobody knows."),
    ("so?", "so"),
]
"""Lengths that are not sorted, so that batches of similar length come in another order."""


def render(texts: list[tuple[str, str]]) -> list[Rendered]:
    chat = ChatFormat(tiny_tokenizer())
    return [chat.render(example.messages()) for example in examples(texts)]


def examples(texts: list[tuple[str, str]]) -> list[Example]:
    return [Example(id=f"e{n}", instruction=text, response=answer) for n, (text, answer) in enumerate(texts)]


def make_trainer(**arguments: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **arguments,
    )


def make_student(backbone: str) -> StudentModule:
    return StudentModule(backbone, lora=LoraSettings(r=2, alpha=4))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def checkpoint(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained student, whose learning rate has fallen to zero: the peak is what the probe takes."""
    student = make_student(backbone)
    student.training_settings = TrainingSettings(lr=PEAK, schedule="linear", batch_size=2, weight_decay=0.1)
    rendered = render(TRAINED)
    data = TrainingData(
        rendered, [len(one.input_ids) for one in rendered], 2, 0, lambda batch: collate(batch, pad_id=0)
    )
    trainer = make_trainer(max_epochs=1)
    trainer.fit(student, datamodule=data)
    path = tmp_path_factory.mktemp("warmup") / "last.ckpt"
    trainer.save_checkpoint(path)
    return str(path)


def probe(backbone: str, checkpoint: str | None, output: Path, **settings: Any) -> list[Score]:
    """Scores of the probed examples, as the stage `Score` gets them."""
    callback = InfluenceProbeCallback(**settings)
    callback.output = output / f"scores-{len(list(output.iterdir()))}.jsonl"
    data = ScoringData(examples(PROBED), render(PROBED), render(REFERENCE), pad_id=0)
    trainer = make_trainer(callbacks=[callback], inference_mode=False)
    trainer.predict(make_student(backbone), datamodule=data, return_predictions=False, ckpt_path=checkpoint)
    return read_records(callback.output, Score)


def losses(network: nn.Module, rendered: list[Rendered]) -> Tensor:
    """Mean loss of each, alone and without padding, in nats per response token."""
    found = []
    for one in rendered:
        ids = torch.tensor(one.input_ids)
        log_probabilities = network(input_ids=ids[None]).logits[0].log_softmax(dim=-1)
        places = [place for place in range(1, len(ids)) if one.trained[place]]
        found.append(-torch.stack([log_probabilities[place - 1, ids[place]] for place in places]).mean())
    return torch.stack(found)


def brute_force(backbone: str, checkpoint: str, lr: float, optimizer: str = "warm") -> tuple[Tensor, Tensor]:
    """Plain and centred differences, each (probed, reference), by copies of the student and `torch.optim`."""
    student = make_student(backbone)
    student.configure_model()
    content = torch.load(checkpoint, weights_only=True)
    student.load_state_dict(content["state_dict"], strict=False)
    network = student.network.eval()

    def after_step(one: Rendered | None) -> Tensor:
        moving = copy.deepcopy(network)
        parameters = [parameter for parameter in moving.parameters() if parameter.requires_grad]
        if optimizer == "sgd":
            rule: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=lr)
        else:
            decay = 0.1 if optimizer == "warm" else 0.0
            rule = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)
            if optimizer == "warm":
                rule.load_state_dict(copy.deepcopy(content["optimizer_states"][0]))
                rule.param_groups[0]["lr"] = lr
        if one is None:
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
        else:
            losses(moving, [one]).mean().backward()
        rule.step()
        with torch.no_grad():
            return losses(moving, render(REFERENCE))

    with torch.no_grad():
        before = losses(network, render(REFERENCE))
    null = after_step(None)
    steps = torch.stack([after_step(one) for one in render(PROBED)])
    return before - steps, null - steps


@pytest.mark.parametrize("centred", [True, False], ids=["centred", "plain"])
@pytest.mark.parametrize("optimizer", ["warm", "fresh", "sgd"])
def test_value_is_that_of_a_real_step(
    backbone: str, checkpoint: str, tmp_path: Path, optimizer: str, centred: bool
) -> None:
    """Warm AdamW goes on from the checkpoint's moments and settings at the peak rate of the student's training.

    Terms stand in the order of the reference set, though it is measured in batches sorted by length, and average to
    the value. Fresh AdamW and SGD have no weight decay; without moments a step with zero gradient goes nowhere, so that
    plain and centred are equal.
    """
    settings: dict[str, Any] = {
        "warm": {},
        "fresh": {"moments": "fresh"},
        "sgd": {"optimizer": "sgd"},
    }[optimizer]
    scores = probe(backbone, checkpoint, tmp_path, centred=centred, reference_batch_tokens=40, **settings)
    plain, centred_differences = brute_force(backbone, checkpoint, PEAK, optimizer)
    expected = centred_differences if centred else plain
    tolerance = {"rtol": 1e-3, "atol": 2e-6}
    terms = torch.tensor([score.terms for score in scores])
    torch.testing.assert_close(terms, expected, **tolerance)
    torch.testing.assert_close(torch.tensor([score.value for score in scores]), expected.mean(dim=1), **tolerance)
    torch.testing.assert_close(torch.tensor([score.value for score in scores]), terms.mean(dim=1), rtol=0, atol=1e-7)
    assert expected.abs().max() > 1e-3, "there is something to compare"
    for score, plain_terms, centred_terms in zip(scores, plain, centred_differences, strict=True):
        assert score.details["plain"] == pytest.approx(plain_terms.mean().item(), rel=1e-3, abs=2e-6)
        assert score.details["centred"] == pytest.approx(centred_terms.mean().item(), rel=1e-3, abs=2e-6)
        error = (centred_terms if centred else plain_terms).std().item() / len(REFERENCE) ** 0.5
        assert score.standard_error == pytest.approx(error, rel=1e-3, abs=2e-6)
        assert score.method.endswith("centred" if centred else "plain")
    if optimizer != "warm":
        torch.testing.assert_close(plain, centred_differences, rtol=0, atol=2e-6)
    else:
        assert (plain - centred_differences).abs().max() > 1e-3


def test_scores_come_in_order_with_each_examples_own_loss(backbone: str, checkpoint: str, tmp_path: Path) -> None:
    scores = probe(backbone, checkpoint, tmp_path, lr=1e-3)
    assert [score.id for score in scores] == ["e0", "e1", "e2"]
    student = make_student(backbone)
    student.configure_model()
    student.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"], strict=False)
    with torch.no_grad():
        expected = losses(student.network.eval(), render(PROBED))
    assert [score.details["loss"] for score in scores] == pytest.approx(expected.tolist(), rel=1e-5)


def test_learning_rate_is_the_students_peak_unless_given(backbone: str, checkpoint: str, tmp_path: Path) -> None:
    taken_over = probe(backbone, checkpoint, tmp_path)
    given = probe(backbone, checkpoint, tmp_path, lr=PEAK)
    smaller = probe(backbone, checkpoint, tmp_path, lr=PEAK / 5)
    assert taken_over == given
    assert [score.value for score in smaller] != pytest.approx([score.value for score in given])


def test_batches_of_the_reference_change_the_speed_alone(backbone: str, checkpoint: str, tmp_path: Path) -> None:
    one_by_one = probe(backbone, checkpoint, tmp_path, reference_batch_tokens=1)
    together = probe(backbone, checkpoint, tmp_path)
    for one, other in zip(one_by_one, together, strict=True):
        assert one.terms == pytest.approx(other.terms, rel=1e-3, abs=2e-6)


def test_probing_changes_nothing(backbone: str, checkpoint: str, tmp_path: Path) -> None:
    """Each example is measured on the same student: alone, or after others."""
    assert probe(backbone, checkpoint, tmp_path) == probe(backbone, checkpoint, tmp_path)
    callback = InfluenceProbeCallback()
    callback.output = tmp_path / "last.jsonl"
    data = ScoringData(examples(PROBED)[2:], render(PROBED)[2:], render(REFERENCE), pad_id=0)
    make_trainer(callbacks=[callback], inference_mode=False).predict(
        make_student(backbone), datamodule=data, return_predictions=False, ckpt_path=checkpoint
    )
    alone = read_records(callback.output, Score)[0]
    in_company = probe(backbone, checkpoint, tmp_path)[2]
    assert alone.terms == in_company.terms


def test_base_student_needs_a_learning_rate(backbone: str, tmp_path: Path) -> None:
    """Without training there is none to take over, and there are no moments."""
    with pytest.raises(
        ValueError, match=r"needs a learning rate: the student was not trained, .* set `lr` of InfluenceProbe"
    ):
        probe(backbone, None, tmp_path)
    assert len(probe(backbone, None, tmp_path, lr=1e-3)) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_base_in_half_precision_is_refused(
    backbone: str, checkpoint: str, tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter stays in float32 and would pass; the losses would be rounded to two or three digits all the same."""
    load = StudentModule.load

    def load_halved(self: StudentModule) -> nn.Module:
        network = load(self)
        for parameter in network.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        return network

    monkeypatch.setattr(StudentModule, "load", load_halved)
    with pytest.raises(
        ValueError, match=rf"the influence probe needs a student in float32, but .* is in {dtype}; its loss"
    ):
        probe(backbone, checkpoint, tmp_path)


def test_true_half_precision_of_the_trainer_is_refused(backbone: str, checkpoint: str, tmp_path: Path) -> None:
    """`bf16-true` would turn the whole student into bfloat16; mixed precision is switched off while probing."""
    callback = InfluenceProbeCallback()
    callback.output = tmp_path / "half.jsonl"
    data = ScoringData(examples(PROBED), render(PROBED), render(REFERENCE), pad_id=0)
    trainer = make_trainer(callbacks=[callback], inference_mode=False, precision="bf16-true")
    with pytest.raises(ValueError, match=r"the influence probe needs a student in float32"):
        trainer.predict(make_student(backbone), datamodule=data, return_predictions=False, ckpt_path=checkpoint)
    callback.output = tmp_path / "mixed.jsonl"
    trainer = make_trainer(callbacks=[callback], inference_mode=False, precision="bf16-mixed")
    trainer.predict(make_student(backbone), datamodule=data, return_predictions=False, ckpt_path=checkpoint)
    exact = probe(backbone, checkpoint, tmp_path)
    assert [score.terms for score in read_records(callback.output, Score)] == [score.terms for score in exact]
