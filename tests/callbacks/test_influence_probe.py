"""The influence callback inside `Trainer.predict`, against a copy of the student that takes a real optimizer step.

The student is a tiny Llama with an adapter, after two steps of AdamW that a checkpoint holds.
"""

import copy
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import quiet_trainer
from tiny_models import save_tiny_model, tiny_tokenizer
from torch import Tensor, nn

from callbacks import InfluenceProbeCallback
from montessori_pl.batches.collate import collate
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.records import Example, Score, read_records
from montessori_pl.models.loading import LoraSettings
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.signals.scoring_data import ScoringData
from montessori_pl.stages.training.fit import TrainingData

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
    chat_template = ChatTemplate(tiny_tokenizer())
    return [chat_template.render(example.messages()) for example in examples(texts)]


def examples(texts: list[tuple[str, str]]) -> list[Example]:
    return [Example(id=f"e{n}", instruction=text, response=answer) for n, (text, answer) in enumerate(texts)]


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
        rendered, [len(one.input_ids) for one in rendered], 2, 0, lambda batch: collate(batch, pad_id=0), {}
    )
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(student, datamodule=data)
    path = tmp_path_factory.mktemp("warmup") / "last.ckpt"
    trainer.save_checkpoint(path)
    return str(path)


def probe(backbone: str, checkpoint: str | None, output: Path, **settings: Any) -> list[Score]:
    """Scores of the probed examples, as the stage `ScoreExamples` gets them."""
    callback = InfluenceProbeCallback(**settings)
    callback.output = output / f"scores-{len(list(output.iterdir()))}.jsonl"
    data = ScoringData(examples(PROBED), render(PROBED), render(REFERENCE), pad_id=0)
    trainer = quiet_trainer(callbacks=[callback], inference_mode=False)
    trainer.predict(make_student(backbone), datamodule=data, return_predictions=False, ckpt_path=checkpoint)
    return read_records(callback.output, Score)


def losses(network: nn.Module, rendered: list[Rendered]) -> Tensor:
    """Mean loss of each, alone and without padding, in nats per response token."""
    found = []
    for one in rendered:
        ids = torch.tensor(one.input_ids)
        log_probabilities = network(input_ids=ids[None]).logits[0].log_softmax(dim=-1)
        places = [place for place in range(1, len(ids)) if one.completion_mask[place]]
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


@pytest.mark.parametrize("reduction", ["examples", "tokens", "batches_of_8", "losses"])
@pytest.mark.parametrize("centred", [True, False], ids=["centred", "plain"])
def test_terms_average_to_the_value_whatever_each_reference_weighs(
    backbone: str, checkpoint: str, tmp_path: Path, reduction: str, centred: bool
) -> None:
    """A paired noise margin is taken from them."""
    for score in probe(backbone, checkpoint, tmp_path, centred=centred, reduction=reduction):
        assert sum(score.terms) / len(score.terms) == pytest.approx(score.value, rel=1e-4, abs=1e-7)
        error = torch.tensor(score.terms).std().item() / len(score.terms) ** 0.5
        assert score.standard_error == pytest.approx(error, rel=1e-4, abs=1e-7)


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_probing_changes_nothing(backbone: str, checkpoint: str, tmp_path: Path) -> None:
    """Each example is measured on the same student: alone, or after others."""
    assert probe(backbone, checkpoint, tmp_path) == probe(backbone, checkpoint, tmp_path)
    callback = InfluenceProbeCallback()
    callback.output = tmp_path / "last.jsonl"
    data = ScoringData(examples(PROBED)[2:], render(PROBED)[2:], render(REFERENCE), pad_id=0)
    quiet_trainer(callbacks=[callback], inference_mode=False).predict(
        make_student(backbone), datamodule=data, return_predictions=False, ckpt_path=checkpoint
    )
    alone = read_records(callback.output, Score)[0]
    in_company = probe(backbone, checkpoint, tmp_path)[2]
    assert alone.terms == in_company.terms != ()


def test_base_student_needs_a_learning_rate(backbone: str, tmp_path: Path) -> None:
    """Without training there is none to take over, and there are no moments."""
    with pytest.raises(
        ValueError, match=r"needs a learning rate: the student was not trained, .* set `lr` of InfluenceProbe"
    ):
        probe(backbone, None, tmp_path)
    assert len(probe(backbone, None, tmp_path, lr=1e-3)) == 3


def load_in(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, trained: bool, back_to: torch.dtype | None = None
) -> None:
    """From now on, students come with their trained or their frozen parameters rounded to this type."""
    load = StudentModule.load

    def load_rounded(self: StudentModule) -> nn.Module:
        network = load(self)
        for parameter in network.parameters():
            if parameter.requires_grad == trained:
                parameter.data = parameter.data.to(dtype).to(back_to or dtype)
        return network

    monkeypatch.setattr(StudentModule, "load", load_rounded)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exact", "first_order"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_base_in_half_precision_computes_in_float32(
    backbone: str, checkpoint: str, tmp_path: Path, dtype: torch.dtype, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are those of the same rounded weights in float32, to the last digit, and not those of the base."""
    unrounded = probe(backbone, checkpoint, tmp_path, method=method)
    with monkeypatch.context() as patch:
        load_in(patch, dtype, trained=False)
        found = probe(backbone, checkpoint, tmp_path, method=method)
    with monkeypatch.context() as patch:
        load_in(patch, dtype, trained=False, back_to=torch.float32)
        expected = probe(backbone, checkpoint, tmp_path, method=method)

    assert [score.value for score in found] == [score.value for score in expected]
    assert [score.terms for score in found] == [score.terms for score in expected]
    assert all(one.value != other.value for one, other in zip(found, unrounded, strict=True))


@pytest.mark.parametrize("method", ["auto", "exact", "first_order"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trained_parameters_in_half_precision_are_refused(
    backbone: str, checkpoint: str, tmp_path: Path, dtype: torch.dtype, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of a small learning rate would be rounded away."""
    load_in(monkeypatch, dtype, trained=True)
    with pytest.raises(ValueError, match=rf"needs parameters in float32, but .*lora_A.* is in {dtype}: at"):
        probe(backbone, checkpoint, tmp_path, method=method)


@pytest.mark.slow
def test_true_half_precision_of_the_trainer_is_refused(backbone: str, checkpoint: str, tmp_path: Path) -> None:
    """`bf16-true` would turn the whole student into bfloat16; mixed precision is switched off while probing."""
    callback = InfluenceProbeCallback()
    callback.output = tmp_path / "half.jsonl"
    data = ScoringData(examples(PROBED), render(PROBED), render(REFERENCE), pad_id=0)
    trainer = quiet_trainer(callbacks=[callback], inference_mode=False, precision="bf16-true")
    with pytest.raises(ValueError, match=r"needs parameters in float32, but .*lora_A.* is in torch\.bfloat16: at"):
        trainer.predict(make_student(backbone), datamodule=data, return_predictions=False, ckpt_path=checkpoint)
    callback.output = tmp_path / "mixed.jsonl"
    trainer = quiet_trainer(callbacks=[callback], inference_mode=False, precision="bf16-mixed")
    trainer.predict(make_student(backbone), datamodule=data, return_predictions=False, ckpt_path=checkpoint)
    exact = probe(backbone, checkpoint, tmp_path)
    assert [score.terms for score in read_records(callback.output, Score)] == [score.terms for score in exact]


PROMPTS, SAMPLES = 18, 3
WORDS = ["why", "what is it", "so it is", "nobody knows", "a long answer, is it", "b", "say that again"]
MANY = [
    Example(
        id=f"p{prompt}s{sample}",
        instruction=f"{WORDS[prompt % 7]} {WORDS[(prompt * 3 + sample) % 7]}?",
        response=WORDS[(prompt + 2 * sample) % 7] + ".",
        prompt_id=f"p{prompt}",
    )
    for prompt in range(PROMPTS)
    for sample in range(SAMPLES)
]
LARGE_REFERENCE = [(f"{one}?", other) for one in WORDS for other in WORDS[:3]]


def probe_many(
    backbone: str, checkpoint: str, output: Path, scored: list[str] | None = None, **settings: Any
) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the scores and the report, for samples of several prompts in several batches."""
    callback = InfluenceProbeCallback(**settings)
    output.mkdir(exist_ok=True)
    callback.output = output / "scores.part0.jsonl"
    chat_template = ChatTemplate(tiny_tokenizer())
    rendered = [chat_template.render(example.messages()) for example in MANY]
    data = ScoringData(MANY, rendered, render(LARGE_REFERENCE), pad_id=0, batch_tokens=300, scored=scored or [])
    trainer = quiet_trainer(callbacks=[callback], inference_mode=False)
    trainer.predict(make_student(backbone), datamodule=data, return_predictions=False, ckpt_path=checkpoint)
    report = output / "signal.json"
    return callback.output.read_bytes(), json.loads(report.read_text()) if report.exists() else {}


def parse(content: bytes) -> list[Score]:
    return [Score(**json.loads(line)) for line in content.decode().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"method": "exact"}, "exact"),
        ({"method": "first_order", "refine": 0.0}, "first order"),
        ({"method": "control_variate", "num_references": 5, "refine": 0.0}, "first order, corrected on 5 references"),
        pytest.param({"lr": 1e-4, "refine": 0.0, "min_agreement": 0.95}, "first order", marks=pytest.mark.slow),
        pytest.param({"lr": 1e-4, "min_agreement": 1.0}, "exact", marks=pytest.mark.slow),
    ],
    ids=["exact", "first order", "control variate", "auto", "auto that trusts nothing"],
)
def test_scores_carry_their_method_and_a_report(
    backbone: str, checkpoint: str, tmp_path: Path, settings: dict[str, Any], method: str
) -> None:
    content, report = probe_many(backbone, checkpoint, tmp_path / "scores", **settings)
    scores = parse(content)

    assert [score.id for score in scores] == [example.id for example in MANY]
    # With `auto`, whoever was scored exactly to choose the method stays so.
    kept = 48 if "method" not in settings and method != "exact" else 0
    methods = Counter(score.method.removesuffix(" influence, adamw, centred") for score in scores)
    assert methods == Counter({method: len(MANY) - kept} | ({"exact": kept} if kept else {}))
    for score in scores:
        assert score.value == score.details["centred"] != score.details["plain"]
        assert score.standard_error is not None
        assert score.standard_error > 0
        assert len(score.terms) == (len(LARGE_REFERENCE) if score.method.startswith("exact") else 0)
    assert report["rounding"]["reliability"] > 0.99
    assert report["memory"]["kept_gradients"] == len(LARGE_REFERENCE)
    if settings.get("method") == "exact":
        assert set(report) == {"rounding", "memory"}
        return
    assert report["chosen"]["method"] == method
    assert report["reason"]
    compared = [one["method"] for one in report["candidates"]]
    assert compared[0] == "first order"
    assert compared[-1] == "exact"
    assert report["candidates"][0]["agreement"]["count"] == 48
    if "method" not in settings:
        exact = parse(probe_many(backbone, checkpoint, tmp_path / "exact", method="exact", lr=1e-4)[0])
        same = [one == other for one, other in zip(scores, exact, strict=True)]
        assert sum(same) == (kept or len(MANY)), "exact scores are those of the exact method, to the last digit"
        agreed = torch.corrcoef(torch.tensor([[score.value for score in both] for both in (scores, exact)]))[0, 1]
        assert agreed > 0.95


@pytest.mark.slow
def test_refined_scores_say_so(backbone: str, checkpoint: str, tmp_path: Path) -> None:
    content, report = probe_many(backbone, checkpoint, tmp_path / "scores", method="first_order", refine=3.0)
    exact = parse(probe_many(backbone, checkpoint, tmp_path / "exact", method="exact")[0])
    scores = parse(content)
    again = [index for index, score in enumerate(scores) if score.method.startswith("exact influence")]

    assert report["chosen"]["method"] == "first order"
    assert 0 < len(again) < len(scores)
    assert all(scores[i].value == exact[i].value and scores[i].terms == exact[i].terms != () for i in again)
    assert all(not math.isnan(score.value) for score in scores)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["auto", *(pytest.param(one, marks=pytest.mark.slow) for one in ("exact", "first_order"))]
)
def test_scoring_that_goes_on_writes_the_same_bytes(
    backbone: str, checkpoint: str, tmp_path: Path, method: str
) -> None:
    """What a batch holds is fixed; one of which a part was written is scored again as a whole."""
    settings = {"method": method, "lr": 1e-3, "min_agreement": 0.9}
    whole, report = probe_many(backbone, checkpoint, tmp_path / "whole", **settings)
    lines = whole.splitlines(keepends=True)
    assert len(lines) == len(MANY)
    plan = ScoringData(MANY, [ChatTemplate(tiny_tokenizer()).render(e.messages()) for e in MANY], [], 0, 300).batches()
    assert len(plan) > 3
    done = sum(len(batch) for batch in plan[:2])
    before = [score.id for score in parse(b"".join(lines[: done + 1]))]
    rest, same_report = probe_many(backbone, checkpoint, tmp_path / "resumed", scored=before, **settings)

    assert b"".join(lines[:done]) + rest == whole
    assert same_report == report


@pytest.mark.slow
def test_few_examples_are_scored_exactly(backbone: str, checkpoint: str, tmp_path: Path) -> None:
    """To choose a method would take as many exact scores as there are examples."""
    auto, report = probe_many(backbone, checkpoint, tmp_path / "auto", calibration_examples=len(MANY))
    exact, _ = probe_many(backbone, checkpoint, tmp_path / "exact", method="exact")

    assert auto == exact
    assert "chosen" not in report


@pytest.mark.slow
def test_a_step_below_rounding_is_warned_of(backbone: str, checkpoint: str, tmp_path: Path) -> None:
    """`auto` takes first order, which has no such floor; who insists on exact is told."""
    settings: dict[str, Any] = {"lr": 1e-9, "moments": "fresh", "min_agreement": 0.9}
    content, auto = probe_many(backbone, checkpoint, tmp_path / "auto", **settings)
    _, exact = probe_many(backbone, checkpoint, tmp_path / "exact", method="exact", **settings)

    assert auto["chosen"]["method"] == "first order"
    assert {score.method.split(" influence")[0] for score in parse(content)} == {"first order"}
    assert "warnings" not in auto
    assert "lost in the rounding of float32" in exact["warnings"][0]


@pytest.mark.slow
def test_clipped_probes_take_clipped_steps(backbone: str, checkpoint: str, tmp_path: Path) -> None:
    """Against PyTorch's own clipping and AdamW; all gradients are longer than the bound."""
    largest = 0.01
    scores = probe(backbone, checkpoint, tmp_path, lr=0.01, method="exact", gradient_clip_val=largest)
    student = make_student(backbone)
    student.configure_model()
    state = torch.load(checkpoint, weights_only=False)
    student.load_state_dict(state["state_dict"], strict=False)
    network = student.network
    weights = copy.deepcopy(network.state_dict())
    trained = list(student.optimized().values())

    def after(example: Rendered | None) -> float:
        network.load_state_dict(weights)
        optimizer = torch.optim.AdamW(trained)
        optimizer.load_state_dict(copy.deepcopy(state["optimizer_states"][0]))
        optimizer.param_groups[0]["lr"] = 0.01
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        if example is not None:
            losses(network, [example]).sum().backward()
            assert torch.nn.utils.clip_grad_norm_(trained, largest) > largest
        optimizer.step()
        with torch.no_grad():
            return float(losses(network, render(REFERENCE)).double().mean())

    expected = [after(None) - after(example) for example in render(PROBED)]
    # Each is the difference of two losses near 5, whose last digit is worth 5e-7 in float32.
    assert [score.value for score in scores] == pytest.approx(expected, rel=1e-3, abs=2e-6)
    plain = [score.value for score in probe(backbone, checkpoint, tmp_path, lr=0.01, method="exact")]
    assert plain != pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", ["gradient_clip_val", "memory_budget"])
def test_settings_that_mean_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"InfluenceProbeCallback\.{name}: expected "):
        InfluenceProbeCallback(**{name: 0})
