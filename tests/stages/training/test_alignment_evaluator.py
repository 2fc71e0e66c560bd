"""What a look at the teacher sees, and that it disturbs nothing."""

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from alignments import PROMPTS, SEED, SHORT, Align, Whatever, evaluations_of
from lightning.pytorch.utilities import rank_zero_only
from tiny_models import tiny_tokenizer

from montessori_pl.batches.encoding import encode_pairs
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import PreferencePair, SampledTokens, read_lines, stable_seed
from montessori_pl.generation import Completion, Request, Sampling, TransformersBackend
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.loading import LoraSettings, ModelSource, load_model, save_weights
from montessori_pl.stages.training.alignment_evaluator import AlignmentEvaluator
from montessori_pl.synthesis.diversity import diversity

pytestmark = pytest.mark.filterwarnings(r"ignore:.*:UserWarning:lightning\..*")  # as the program does


class Loads(TransformersBackend):
    """Remembers the models that it was told to load."""

    def __init__(self, device: str) -> None:
        super().__init__(device=device)
        self.loaded: list[ModelSource] = []

    def load(self, source: ModelSource) -> None:
        self.loaded.append(source)
        assert source.weights is None or (source.weights / "adapter_config.json").exists()
        super().load(source)


def slow_log_probability(
    source: ModelSource,
    chat_template: ChatTemplate,
    prompt: str,
    text: str,
    finished: bool,
    tokens: SampledTokens | None = None,
) -> float:
    """Of one completion, token by token."""
    model = load_model(source)
    ids, response = (
        chat_template.prompt_ids([{"role": "user", "content": prompt}]),
        chat_template.response_ids(text, finished, tokens),
    )
    total = 0.0
    for token in response:
        with torch.no_grad():
            total += float(model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(dim=0)[token])
        ids = [*ids, token]
    return total


@pytest.fixture(params=["first", "second"])
def evaluator(request: pytest.FixtureRequest, backbone: str, pairs: Path, tmp_path: Path) -> AlignmentEvaluator:
    """Looks at a teacher that has moved away from its reference, in the first iteration and in the second one."""
    generator = torch.Generator().manual_seed(4)

    def moved(teacher: TeacherDPOModule) -> TeacherDPOModule:
        teacher.configure_model()
        with torch.no_grad():
            for parameter in teacher.optimized().values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return teacher

    lora = LoraSettings(r=2, alpha=4, dropout=0.5)
    teacher = TeacherDPOModule(backbone, lora=lora, beta=0.3, sft_weight=0.5)
    if request.param == "second":
        save_weights(moved(TeacherDPOModule(backbone, lora=lora)).network, tmp_path / "previous")  # type: ignore[arg-type]
        teacher.source = dataclasses.replace(teacher.source, weights=tmp_path / "previous")
    moved(teacher).network.train()
    chat_template = ChatTemplate(tiny_tokenizer(), context=96)
    records = [PreferencePair.from_dict(line) for line in read_lines(pairs / "pairs.jsonl")][:5]
    return AlignmentEvaluator(
        teacher=teacher,
        chat_template=chat_template,
        held_out=encode_pairs(records, chat_template, 64),
        prompts=[[{"role": "user", "content": text}] for text in PROMPTS],
        num_samples=8,
        sampling=SHORT,
        read=Whatever().read,
        seed=SEED,
        batch_size=2,
    )


class TestLook:
    @pytest.mark.slow
    def test_numbers_of_the_pairs(self, evaluator: AlignmentEvaluator, pairs: Path, tmp_path: Path) -> None:
        """Against log-probabilities of one completion at a time, under two models that are loaded anew."""
        evaluation = evaluator.evaluate()
        teacher = evaluator.teacher
        save_weights(teacher.network, tmp_path / "moved")  # type: ignore[arg-type]
        policy, reference = ModelSource(teacher.backbone, tmp_path / "moved"), teacher.source
        ratios: dict[str, list[float]] = {"chosen": [], "rejected": []}
        losses, nll, tokens = [], 0.0, 0
        for line in list(read_lines(pairs / "pairs.jsonl"))[:5]:
            for side, values in ratios.items():
                completion = (evaluator.chat_template, line["prompt"], line[side], line[f"{side}_finished"])
                log_probability = slow_log_probability(policy, *completion)
                values.append(log_probability - slow_log_probability(reference, *completion))
                if side == "chosen":
                    nll -= line["weight"] * log_probability
                    tokens += len(evaluator.chat_template.response_ids(line["chosen"], line["chosen_finished"]))
            margin = ratios["chosen"][-1] - ratios["rejected"][-1]
            losses.append(line["weight"] * math.log(1 + math.exp(-0.3 * margin)))
        margins = [one - other for one, other in zip(ratios["chosen"], ratios["rejected"], strict=True)]
        assert evaluation["loss"] == pytest.approx(sum(losses) / 5 + 0.5 * nll / tokens, rel=1e-4)
        assert evaluation["margin"] == pytest.approx(sum(margins) / 5, rel=1e-4, abs=1e-4)
        assert evaluation["chosen_log_ratio"] == pytest.approx(sum(ratios["chosen"]) / 5, rel=1e-4, abs=1e-4)
        assert evaluation["rejected_log_ratio"] == pytest.approx(sum(ratios["rejected"]) / 5, rel=1e-4, abs=1e-4)
        assert evaluation["reward_accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / 5)

    @pytest.mark.slow
    def test_numbers_of_the_writing(self, evaluator: AlignmentEvaluator, tmp_path: Path) -> None:
        """The same completions as of the saved teacher, loaded by the engine itself; scored one at a time."""
        evaluation = evaluator.evaluate()
        teacher, chat_template = evaluator.teacher, evaluator.chat_template
        save_weights(teacher.network, tmp_path / "moved")  # type: ignore[arg-type]
        policy, reference = ModelSource(teacher.backbone, tmp_path / "moved"), teacher.source
        engine = TransformersBackend(device="cpu")
        engine.load(policy)
        asked = [*PROMPTS, *PROMPTS[:2]]
        requests = [
            Request(messages=[{"role": "user", "content": text}], seed=stable_seed(SEED, "look", number))
            for number, text in enumerate(asked)
        ]
        completions: list[Completion] = engine.generate(requests, SHORT)
        ratios, nats, tokens = [], 0.0, 0
        for prompt, completion in zip(asked, completions, strict=True):
            scored = (chat_template, prompt, completion.text, completion.finished, completion.tokens)
            before = slow_log_probability(reference, *scored)
            ratios.append(slow_log_probability(policy, *scored) - before)
            nats -= before
            tokens += completion.num_tokens
        instructions = [completion.text.strip() for completion in completions if "a" in completion.text]
        assert evaluation["samples"] == [completion.text for completion in completions[:3]]
        assert evaluation["parsed_rate"] == len(instructions) / 8
        assert {name: evaluation[name] for name in diversity([])} == diversity(instructions)
        assert evaluation["tokens"] == sum(completion.num_tokens for completion in completions) / 8
        assert evaluation["kl"] == pytest.approx(sum(ratios) / 8, rel=1e-4, abs=1e-4)
        assert evaluation["divergence"] == pytest.approx(sum(ratios) / tokens, rel=1e-4, abs=1e-4)
        assert evaluation["surprise"] == pytest.approx(nats / tokens, rel=1e-4)

    def test_disturbs_nothing(self, evaluator: AlignmentEvaluator) -> None:
        """Mode of each module, gradients, what is trained, weights and random states; and no tensor of inference."""
        network = evaluator.teacher.network
        for parameter in evaluator.teacher.optimized().values():
            parameter.grad = torch.ones_like(parameter)
        next(network.children()).eval()  # one part, as a callback might

        def state() -> Any:
            return (
                [module.training for module in network.modules()],
                {name: parameter.requires_grad for name, parameter in network.named_parameters()},
                {name: parameter.grad.sum().item() for name, parameter in evaluator.teacher.optimized().items()},  # type: ignore[union-attr]
                {name: parameter.detach().double().sum().item() for name, parameter in network.named_parameters()},
                torch.get_rng_state().tolist(),
                random.getstate(),
            )

        before, evaluation = state(), evaluator.evaluate()
        assert state() == before
        assert evaluator.evaluate() == evaluation, "and the next one sees the same"
        assert not any(tensor.is_inference() for tensor in (*network.parameters(), *network.buffers()))

    def test_an_engine_that_loads_weights_sees_the_same(self, evaluator: AlignmentEvaluator, tmp_path: Path) -> None:
        """The teacher goes to it by files, and a base without any."""
        engine = Loads(device="cpu")
        by_files = dataclasses.replace(evaluator, engine=engine, in_place=False)
        save_weights(evaluator.teacher.language_model, tmp_path / "now")
        assert by_files.evaluate(tmp_path / "now") == evaluator.evaluate()
        assert engine.loaded == [dataclasses.replace(evaluator.teacher.source, weights=tmp_path / "now")]
        if evaluator.teacher.source.weights is None:  # the reference of the first iteration is the base
            with evaluator.teacher.reference_policy():
                assert by_files.evaluate() == evaluator.evaluate()
            assert engine.loaded[1].weights is None

    def test_other_processes_wait_for_such_an_engine(
        self, evaluator: AlignmentEvaluator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There is one of it; numbers of the pairs are computed by all."""
        engine = Loads(device="cpu")
        monkeypatch.setattr(rank_zero_only, "rank", 1)
        found = dataclasses.replace(evaluator, engine=engine, in_place=False).evaluate()
        assert not engine.loaded
        assert "loss" in found
        assert "samples" not in found

    def test_completions_end_with_the_context(self, evaluator: AlignmentEvaluator) -> None:
        """The default limit of 1,024 tokens is more than small models have positions."""
        evaluation = dataclasses.replace(evaluator, sampling=Sampling(max_tokens=1024)).evaluate()
        assert evaluation["tokens"] <= 96

    @pytest.mark.slow
    def test_before_the_first_step_nothing_has_moved(self, align: Align, tmp_path: Path) -> None:
        align(tmp_path)
        first, _, *others = evaluations_of(tmp_path)  # the learning rate rises from zero: the first step moves nothing
        assert [first[name] for name in ("margin", "chosen_log_ratio", "kl", "reward_accuracy")] == [0, 0, 0, 0]
        assert all(evaluation["kl"] != 0 and evaluation["margin"] != 0 for evaluation in others)
