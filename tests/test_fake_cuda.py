"""On a GPU no tensor is left on the CPU: what is tried here runs once on the CPU and once on a GPU that is not there.

Each trial returns numbers, which must be the same; a tensor on the wrong device ends it (`fake_cuda.py` says how).
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from fake_cuda import CPU, CUDA, device_of, fake_cuda, on_fake_cuda
from preference_pairs import pair_batch
from stage_runs import quiet_trainer
from tiny_models import random_adapter, save_tiny_model, save_tiny_reward_model, tiny_tokenizer
from torch import nn

import callbacks
from callbacks import (
    GradientCosineSignal,
    IFDSignal,
    InfluenceDuringTraining,
    InfluenceProbeCallback,
    ProjectedGradientSignal,
    RandomSignal,
    RankSurprisalSignal,
    ResponseLengthSignal,
    RewardModelSignal,
    SolveRateSignal,
    TrainingLossSignal,
)
from montessori_pl.batches.collate import collate
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Score, append_records, read_records
from montessori_pl.evaluation.losses import ResponseLoss
from montessori_pl.generation import Request, Sampling, TransformersBackend
from montessori_pl.influence import (
    AdamMoments,
    AdamW,
    InfluenceScorer,
    packing,
    per_example_gradients,
    score_dataset,
    trainable_parameters,
)
from montessori_pl.losses import PairLoss
from montessori_pl.models.dpo import DPOModule, TeacherDPOModule
from montessori_pl.models.grpo import GRPOModule
from montessori_pl.models.loading import LoraSettings, ModelSource, load_model
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.routing.encoder import Prompt, PromptEncoder
from montessori_pl.signals.base import SignalCallback
from montessori_pl.signals.scoring_data import ScoringData
from montessori_pl.stages.training.fit import TrainingData

# Lightning's advice on loaders, which the command line silences too.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You are using a custom batch sampler"),
]

CHAT = ChatTemplate(tiny_tokenizer())
PROBED = [("what is it?", "it is a."), ("what is it?", "so"), ("ask", "why? why?"), ("ask", "b"), ("b", "c")]
TRAINED = [("say a", "a"), ("why?", "nobody knows."), ("is it?", "it is")]
REFERENCE = [("is it?", "it is"), ("a long question, is it?", "b."), ("why?", "so"), ("so it?", "a")]


def records(texts: list[tuple[str, str]]) -> list[Example]:
    return [Example(id=f"e{n}", instruction=q, response=a, prompt_id=q) for n, (q, a) in enumerate(texts)]


def rendered(texts: list[tuple[str, str]]) -> list[Any]:
    return [CHAT.render(example.messages()) for example in records(texts)]


def same_on_cuda(trial: Callable[[dict[str, Any]], Any]) -> None:
    """Run a trial on both devices; it is given arguments of a trainer, or makes use of the device that is found."""
    expected = trial({"accelerator": "cpu"})
    # A GPU packs examples into other batches, whose sums are rounded otherwise.
    with mock.patch.dict(packing.COST_OF_A_PASS, {"cuda": packing.COST_OF_A_PASS["cpu"]}), fake_cuda():
        found = trial(on_fake_cuda())
    assert found == expected or torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=2e-6)


def device_in(arguments: dict[str, Any]) -> str:
    """The device of a trainer with these arguments."""
    return "cpu" if arguments["accelerator"] == "cpu" else "cuda"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def make_student(backbone: str, lora: LoraSettings | None = LoraSettings(r=2, alpha=4)) -> StudentModule:
    torch.manual_seed(0)
    return StudentModule(backbone, lora=lora)


def training_data() -> TrainingData:
    items = rendered(TRAINED)
    return TrainingData(items, [len(one.input_ids) for one in items], 2, 0, lambda batch: collate(batch, pad_id=0))


def train(student: StudentModule, trainer_arguments: dict[str, Any], *extra: Any, path: Path | None = None) -> None:
    student.training_settings = TrainingSettings(lr=0.05, schedule="linear", batch_size=2, weight_decay=0.1)
    trainer = quiet_trainer(extra, **{"max_epochs": 2, "gradient_clip_val": 1.0, **trainer_arguments})
    trainer.fit(student, datamodule=training_data())
    if path is not None:
        trainer.save_checkpoint(path)


@pytest.fixture(scope="module")
def checkpoint(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("warmup") / "last.ckpt"
    train(make_student(backbone), {"accelerator": "cpu"}, path=path)
    return str(path)


def scores_of(signal: SignalCallback, backbone: str, checkpoint: str, trainer_arguments: dict[str, Any]) -> list[float]:
    """The scores that a signal gives inside `Trainer.predict`, which loads the checkpoint to the CPU."""
    signal.output.unlink(missing_ok=True)
    data = ScoringData(records(PROBED), rendered(PROBED), rendered(REFERENCE), pad_id=0, batch_tokens=60)
    trainer = quiet_trainer([signal], inference_mode=False, **trainer_arguments)
    trainer.predict(make_student(backbone), datamodule=data, return_predictions=False, ckpt_path=checkpoint)
    return [score.value for score in read_records(signal.output, Score)]


# ---- the ruler


def test_devices_are_told_apart() -> None:
    with fake_cuda():
        here, there = torch.arange(3.0), torch.arange(3.0, device="cuda")
        assert (here.device, there.device, there.to("cpu").device) == (CPU, CUDA, CPU)
        assert torch.zeros_like(there).device == there[there > 1].device == here.to(there).device == CUDA
        assert (there + torch.tensor(1.0)).tolist() == [1, 2, 3], "a number may come from the CPU"
        assert there[torch.tensor([2, 0])].tolist() == [2, 0], "and so may indices"
        for mixed in (lambda: there + here, lambda: here[there.long()], lambda: torch.stack([here, there])):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()


def test_gradients_know_devices() -> None:
    with fake_cuda():
        there = torch.arange(3.0, device="cuda").requires_grad_()
        (there**2).sum().backward()
        seen = []

        def cube(x: torch.Tensor) -> torch.Tensor:
            seen.append(x.device)
            return (x * x * torch.ones(3, device=x.device) * x).sum()

        assert there.grad is not None
        assert (device_of(there.grad), there.grad.tolist()) == (CUDA, [0, 2, 4])
        assert torch.func.grad(cube)(there.detach()).tolist() == [0, 3, 12]
        assert seen == [CUDA]
        with pytest.raises(RuntimeError, match="same device"):
            torch.func.grad(lambda x: (x * torch.ones(3)).sum())(there.detach())


def test_a_module_moves() -> None:
    with fake_cuda():
        layer = nn.Linear(2, 2).to("cuda")
        assert {parameter.device for parameter in layer.parameters()} == {CUDA}
        with pytest.raises(RuntimeError, match="same device"):
            layer(torch.ones(1, 2))


# ---- influence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "moments"),
    [
        ("first_order", "warm"),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in [("exact", "warm"), ("exact", "fresh"), ("control_variate", "warm"), ("auto", "warm")]
        ),
    ],
)
def test_influence_probe(backbone: str, checkpoint: str, tmp_path: Path, method: Any, moments: Any) -> None:
    signal = InfluenceProbeCallback(
        lr=0.01, moments=moments, method=method, num_references=2, calibration_examples=2, reference_batch_tokens=64
    )
    signal.output = tmp_path / "scores.jsonl"
    same_on_cuda(lambda arguments: scores_of(signal, backbone, checkpoint, arguments))


@pytest.mark.slow
def test_influence_probe_by_sgd(backbone: str, checkpoint: str, tmp_path: Path) -> None:
    signal = InfluenceProbeCallback(lr=0.1, optimizer="sgd", centred=False, reduction="batches_of_8")
    signal.output = tmp_path / "scores.jsonl"
    same_on_cuda(lambda arguments: scores_of(signal, backbone, checkpoint, arguments))


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["all", "upper layer", "half-precision base"])
@pytest.mark.parametrize("method", ["exact", "control_variate"])
def test_influence_of_other_parameters(backbone: str, trained: str, method: Any) -> None:
    """Gradients one by one, hidden states of frozen layers that are kept, and weights that are raised to float32."""

    def trial(arguments: dict[str, Any]) -> list[float]:
        torch.manual_seed(0)
        lora = {"all": None, "upper layer": LoraSettings(r=2, layers=[1])}.get(trained, LoraSettings(r=2))
        half = trained == "half-precision base"
        student = StudentModule(backbone, lora=lora, base_dtype="bfloat16" if half else "float32")
        student.configure_model()
        device = device_in(arguments)
        network = student.network.to(device)
        params = trainable_parameters(network)
        moments = AdamMoments(
            3, {n: torch.full_like(p, 0.1) for n, p in params.items()}, {n: p**2 + 0.1 for n, p in params.items()}
        )
        references, probed = (
            {name: rows.to(device) for name, rows in collate(rendered(texts), 0).items()}
            for texts in (REFERENCE, PROBED[:3])
        )
        scorer = InfluenceScorer(
            network, AdamW(1e-3, moments=moments), [references], method=method, num_references=4, batch_tokens=48
        )
        scorer.calibrate([probed])
        assert trained != "all" or per_example_gradients(scorer.exact.loss, params).__name__ == "gradients"
        return [number for one in scorer(probed) for number in (one.plain, one.centred, one.centred_standard_error)]

    same_on_cuda(trial)


@pytest.mark.slow
def test_scoring_a_data_set(backbone: str) -> None:
    from datasets import Dataset

    rows = [{"instruction": question, "response": answer} for question, answer in PROBED]

    def trial(arguments: dict[str, Any]) -> list[float]:
        student = make_student(backbone)
        student.configure_model()
        network = student.network.to(device_in(arguments))
        scored = score_dataset(network, tiny_tokenizer(), Dataset.from_list(rows), rows[:3], AdamW(lr=1e-2))
        return list(scored["influence"])

    same_on_cuda(trial)


@pytest.mark.slow
def test_influence_during_training(backbone: str, tmp_path: Path) -> None:
    path = tmp_path / "reference.jsonl"
    append_records(path, records(REFERENCE))

    def trial(arguments: dict[str, Any]) -> list[float]:
        callback = InfluenceDuringTraining(str(path), every_n_steps=1)
        train(make_student(backbone), arguments, callback)
        names = ("influence_mean", "reference_loss", "response_token_entropy")
        return [step[name] for step in callback.measurements.values() for name in names]

    same_on_cuda(trial)


@pytest.mark.slow
def test_a_misplaced_moment_is_found(
    backbone: str, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was wrong once: the moments stayed where the checkpoint was loaded."""
    left = AdamW.from_optimizer_state

    def forgetful(state: Any, names: Any, lr: float | None = None, device: Any = None) -> AdamW:
        return left(state, names, lr)

    monkeypatch.setattr(AdamW, "from_optimizer_state", forgetful)
    for signal in (InfluenceProbeCallback(lr=0.01), GradientCosineSignal()):
        signal.output = tmp_path / "scores.jsonl"
        with fake_cuda(), pytest.raises(RuntimeError, match="same device"):
            scores_of(signal, backbone, checkpoint, on_fake_cuda())


# ---- other signals

SIGNALS: dict[str, Callable[[], SignalCallback]] = {
    "random": RandomSignal,
    "length": lambda: ResponseLengthSignal("low"),
    "loss": lambda: TrainingLossSignal("high"),
    "difficulty": IFDSignal,
    "rank surprisal": RankSurprisalSignal,
    "gradient cosine": GradientCosineSignal,
    "gradient cosine, plain": lambda: GradientCosineSignal(preconditioned=False, reference_batch_tokens=40),
    "projected gradient": lambda: ProjectedGradientSignal(dim=16),
    "solve rate": lambda: SolveRateSignal(samples=2, sampling=Sampling(max_tokens=4), against="response"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_signals(backbone: str, checkpoint: str, tmp_path: Path, name: str) -> None:
    signal = SIGNALS[name]()
    signal.output = tmp_path / "scores.jsonl"
    same_on_cuda(lambda arguments: scores_of(signal, backbone, checkpoint, arguments))


def test_reward_model(backbone: str, checkpoint: str, tmp_path: Path) -> None:
    signal = RewardModelSignal(save_tiny_reward_model(tmp_path / "rewards"), batch_size=2)
    signal.output = tmp_path / "scores.jsonl"
    same_on_cuda(lambda arguments: scores_of(signal, backbone, checkpoint, arguments))


def test_every_signal_without_a_judge_is_tried() -> None:
    """A new one belongs into the list above."""
    signals = {
        name
        for name in callbacks.__all__
        if isinstance(kind := getattr(callbacks, name), type) and issubclass(kind, SignalCallback)
    }
    tried = {type(make()).__name__ for make in SIGNALS.values()} | {"InfluenceProbeCallback", "RewardModelSignal"}
    assert signals - tried <= {"JudgeSignal", "RecordedQualitySignal"}, "these two look at no tensor"


# ---- training, evaluation, generation


@pytest.mark.slow
@pytest.mark.parametrize("lora", [LoraSettings(r=2), None], ids=["adapter", "all weights"])
def test_training_a_student(backbone: str, lora: LoraSettings | None) -> None:
    def trial(arguments: dict[str, Any]) -> list[float]:
        student = make_student(backbone, lora)
        train(student, arguments)
        return [float(parameter.detach().abs().sum()) for parameter in student.optimized().values()]

    same_on_cuda(trial)


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["sigmoid", "robust", "ipo", "sft"])
@pytest.mark.parametrize("trained", ["first adapter", "second adapter", "all weights"])
def test_dpo(backbone: str, tmp_path: Path, trained: str, loss_type: PairLoss) -> None:
    """The step, with each of the three reference policies: no adapter, the previous adapter, a copy of the weights."""
    lora = None if trained == "all weights" else LoraSettings(r=2)
    source = random_adapter(ModelSource(backbone), LoraSettings(r=2), tmp_path / "adapter")

    class Pairs(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return pair_batch()

    def trial(arguments: dict[str, Any]) -> list[float]:
        torch.manual_seed(0)
        module = DPOModule(backbone, lora, 0.3, loss_type, 0.0, 0.5, chat_template="auto", base_dtype="float32")
        if trained == "second adapter":
            module.source = dataclasses.replace(module.source, weights=source.weights)
        module.training_settings = TrainingSettings(lr=0.05, schedule="constant")
        trainer = quiet_trainer(max_epochs=1, **arguments)
        trainer.fit(module, torch.utils.data.DataLoader(Pairs(), batch_size=None))
        return [float(parameter.detach().abs().sum()) for parameter in module.optimized().values()]

    same_on_cuda(trial)


@pytest.mark.slow
def test_grpo(backbone: str, tmp_path: Path) -> None:
    """A step from a previous adapter, held to the base."""
    source = random_adapter(ModelSource(backbone), LoraSettings(r=2), tmp_path / "adapter")

    class Completions(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            batch = pair_batch()
            rows, width = batch["labels"].shape
            known = -torch.arange(1.0, rows * width + 1).view(rows, width) / 10
            advantages = torch.linspace(-1, 1, rows)
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
            return {**inputs, "sampled": known, "reference": known - 0.1, "advantages": advantages}

    def trial(arguments: dict[str, Any]) -> list[float]:
        torch.manual_seed(0)
        teacher = TeacherDPOModule(backbone, lora=LoraSettings(r=2))
        teacher.source = dataclasses.replace(teacher.source, weights=source.weights)
        module = GRPOModule(teacher, (0.2, 0.3), 0.1)
        module.training_settings = TrainingSettings(lr=0.05, schedule="constant")
        trainer = quiet_trainer(max_epochs=1, **arguments)
        trainer.fit(module, torch.utils.data.DataLoader(Completions(), batch_size=None))
        with module.reference_policy():
            base = module.token_log_probabilities(Completions()[0]).sum()
        return [float(base), *(float(parameter.detach().abs().sum()) for parameter in module.optimized().values())]

    same_on_cuda(trial)


def test_evaluation_loss(backbone: str) -> None:
    def trial(arguments: dict[str, Any]) -> list[float]:
        losses: list[float] = ResponseLoss(batch_tokens=40).losses(ModelSource(backbone), records(PROBED)).tolist()
        assert not math.isnan(sum(losses))
        return losses

    same_on_cuda(trial)


@pytest.mark.parametrize("prompts", [[Prompt("why?"), Prompt("a longer one")]])
def test_what_a_router_reads(backbone: str, prompts: Any) -> None:
    def trial(arguments: dict[str, Any]) -> Any:
        return PromptEncoder(ModelSource(backbone), 32).features(prompts).tolist()

    same_on_cuda(trial)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, max_tokens=6),
        Sampling(temperature=0.9, top_p=0.8, presence_penalty=1.0, max_tokens=6),
        Sampling(temperature=0.9, top_p=1.0, presence_penalty=0.0, max_tokens=6),
    ],
    ids=["greedy", "all processors", "sampling"],
)
def test_generation(backbone: str, sampling: Sampling) -> None:
    """Prompts of several lengths in one batch, padded on the left."""
    requests = [Request(messages=[{"role": "user", "content": q}], seed=n) for n, (q, _) in enumerate(PROBED)]

    def trial(arguments: dict[str, Any]) -> list[str]:
        engine = TransformersBackend(device=device_in(arguments))
        engine.load(ModelSource(backbone))
        completions = [completion.text for completion in engine.generate(requests, sampling)]
        engine.close()
        return completions

    same_on_cuda(trial)


def test_serving_a_model_that_is_trained(backbone: str) -> None:
    def trial(arguments: dict[str, Any]) -> list[str]:
        engine = TransformersBackend(device="cpu")
        engine.serve(load_model(ModelSource(backbone)).to(device_in(arguments)), CHAT)
        request = Request(messages=[{"role": "user", "content": "why?"}], seed=1)
        return [one.text for one in engine.generate([request], Sampling(presence_penalty=0.5, max_tokens=6))]

    same_on_cuda(trial)
