"""The simple signals inside `Trainer.predict`, each against a slow and obvious reference.

The student is a tiny Llama with an adapter, after two steps of AdamW that a checkpoint holds.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import quiet_trainer, stage_context, write
from tiny_models import save_tiny_model, save_tiny_reward_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import LlamaForSequenceClassification

import callbacks
import callbacks.instruction_difficulty
from callbacks import (
    GradientCosineSignal,
    IFDSignal,
    ProjectedGradientSignal,
    RandomSignal,
    RankSurprisalSignal,
    ResponseLengthSignal,
    RewardModelSignal,
    TrainingLossSignal,
)
from montessori_pl.batches.collate import collate
from montessori_pl.batches.sources import DataSources
from montessori_pl.data.chat_template import ChatTemplate, LossOn, Rendered
from montessori_pl.data.records import Example, Score, Turn, read_records
from montessori_pl.influence import per_example_gradients
from montessori_pl.models.loading import LoraSettings
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.signals.base import SignalCallback
from montessori_pl.signals.scoring_data import ScoringData
from montessori_pl.stages.score_examples import ScoreExamples as ScoreStage
from montessori_pl.stages.training.fit import TrainingData

# Lightning's advice on loaders, which the command line silences too.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You are using a custom batch sampler"),
]

TRAINED = [("say a", "a"), ("why?", "nobody knows."), ("is it?", "it is")]
SCORED = [
    ("what is it?", "it is a."),
    ("ask", "why? why?"),
    ("b", "c"),
    ("a much longer question", "so it is."),
    ("so", "b"),
]
REFERENCE = [("a long question, is it not?", "so it is."), ("x", "y"), ("why is it so?", "nobody knows.")]
CHAT = ChatTemplate(tiny_tokenizer())


def examples(texts: list[tuple[str, str]]) -> list[Example]:
    """The first one has a system message."""
    return [
        Example(id=f"e{n}", instruction=text, response=answer, system="" if n else "be brief")
        for n, (text, answer) in enumerate(texts)
    ]


def render(texts: list[tuple[str, str]]) -> list[Rendered]:
    return [CHAT.render(example.messages()) for example in examples(texts)]


def make_student(backbone: str) -> StudentModule:
    return StudentModule(backbone, lora=LoraSettings(r=2, alpha=4))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def checkpoint(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student after two steps of AdamW with weight decay."""
    torch.manual_seed(0)  # of the adapter
    student = make_student(backbone)
    student.training_settings = TrainingSettings(lr=0.05, batch_size=2, weight_decay=0.1)
    rendered = render(TRAINED)
    lengths = [len(one.input_ids) for one in rendered]
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(student, datamodule=TrainingData(rendered, lengths, 2, 0, lambda batch: collate(batch, pad_id=0), {}))
    path = tmp_path_factory.mktemp("warmup") / "last.ckpt"
    trainer.save_checkpoint(path)
    return str(path)


@pytest.fixture(scope="module")
def network(backbone: str, checkpoint: str) -> nn.Module:
    """The same student for references that tests compute themselves."""
    student = make_student(backbone)
    student.configure_model()
    student.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"], strict=False)
    return student.network.eval()


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_reward_model(tmp_path_factory.mktemp("reward"))


@dataclasses.dataclass
class Scoring:
    """Scores examples with a signal, as the stage `ScoreExamples` does."""

    backbone: str
    checkpoint: str | None
    directory: Path

    def __call__(self, signal: SignalCallback, order: list[int] | None = None, batch_tokens: int = 4096) -> list[Score]:
        """The scores, in the order of the examples."""
        order = order if order is not None else list(range(len(SCORED)))
        signal.output = self.directory / f"scores-{len(list(self.directory.iterdir()))}.jsonl"
        items, rendered = examples(SCORED), render(SCORED)
        data = ScoringData(
            [items[n] for n in order], [rendered[n] for n in order], render(REFERENCE), 0, batch_tokens=batch_tokens
        )
        self.student = make_student(self.backbone)
        quiet_trainer(callbacks=[signal], inference_mode=False).predict(
            self.student, datamodule=data, return_predictions=False, ckpt_path=self.checkpoint
        )
        return sorted(read_records(signal.output, Score), key=lambda score: score.id)


@pytest.fixture
def score(backbone: str, checkpoint: str, tmp_path: Path) -> Scoring:
    directory = tmp_path / "scores"
    directory.mkdir()
    return Scoring(backbone, checkpoint, directory)


def values(scores: list[Score]) -> list[float]:
    return [score.value for score in scores]


def response_terms(network: nn.Module, one: Rendered) -> list[tuple[float, int]]:
    """Surprisal in nats and rank of each response token, one after another, without batch or padding."""
    with torch.no_grad():
        rows = network(input_ids=torch.tensor([one.input_ids])).logits[0].log_softmax(dim=-1).tolist()
    places = [place for place in range(1, len(one.input_ids)) if one.completion_mask[place]]
    found = []
    for place in places:
        row, token = rows[place - 1], one.input_ids[place]
        found.append((-row[token], 1 + sum(other > row[token] for other in row)))
    return found


def mean_loss(network: nn.Module, one: Rendered) -> float:
    surprisals = [surprisal for surprisal, _ in response_terms(network, one)]
    return sum(surprisals) / len(surprisals)


SIGNALS: dict[str, Callable[[str], SignalCallback]] = {
    "loss": lambda reward_model: TrainingLossSignal("low"),
    "random": lambda reward_model: RandomSignal(),
    "length": lambda reward_model: ResponseLengthSignal("high"),
    "ifd": lambda reward_model: IFDSignal(),
    "rank surprisal": lambda reward_model: RankSurprisalSignal(max_rank=5),
    "reward": lambda reward_model: RewardModelSignal(reward_model, batch_size=2),
    "cosine": lambda reward_model: GradientCosineSignal(),
    "plain cosine": lambda reward_model: GradientCosineSignal(preconditioned=False),
    "projected gradient": lambda reward_model: ProjectedGradientSignal(dim=8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_neither_company_nor_padding_nor_order_matters_and_the_student_stays(
    score: Scoring, network: nn.Module, reward_model: str, name: str
) -> None:
    together = score(SIGNALS[name](reward_model))
    alone = score(SIGNALS[name](reward_model), order=[3, 0, 4, 2, 1], batch_tokens=1)

    assert [one.id for one in together] == ["e0", "e1", "e2", "e3", "e4"]
    assert values(together) == pytest.approx(values(alone), rel=1e-4, abs=1e-6)
    assert len(set(values(together))) > 1
    for one, other in zip(together, alone, strict=True):
        assert one.details == pytest.approx(other.details, rel=1e-4, abs=1e-6)
    after, before = score.student.network, network.state_dict()
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.state_dict().items())
    assert after.state_dict().keys() == before.keys()
    assert all(parameter.grad is None for parameter in after.parameters())
    trained = {key for key, parameter in after.named_parameters() if parameter.requires_grad}
    assert trained == {key for key, parameter in network.named_parameters() if parameter.requires_grad} != set()


def test_training_loss_in_both_directions(score: Scoring, network: nn.Module) -> None:
    """With `low` the score is the mean log-probability: learnability."""
    expected = [mean_loss(network, one) for one in render(SCORED)]
    low, high = score(TrainingLossSignal("low")), score(TrainingLossSignal("high"))
    assert values(low) == pytest.approx([-loss for loss in expected], rel=1e-5)
    assert values(high) == pytest.approx(expected, rel=1e-5)
    assert {one.method for one in low} == {"loss, low is better"}
    assert {one.method for one in high} == {"loss, high is better"}


def test_response_length_counts_the_end_token(score: Scoring) -> None:
    lengths = [len(answer) + 1 for _, answer in SCORED]
    assert values(score(ResponseLengthSignal("high"))) == lengths
    assert values(score(ResponseLengthSignal("low"))) == [-length for length in lengths]


def test_random_scores_are_uniform_and_depend_on_seed_and_id(score: Scoring) -> None:
    """The mean of 2000 uniform draws has a standard deviation of sqrt(1/12/2000) = 0.0065."""
    assert values(score(RandomSignal())) == values(score(RandomSignal())) != values(score(RandomSignal(seed=1)))
    many = [Example(id=f"n{n}", instruction="", response="") for n in range(2000)]
    draws = RandomSignal().measure(make_student("none"), many, {}, torch.tensor([]))["draw"]
    assert all(0 <= draw < 1 for draw in draws)
    assert sum(draws) / len(draws) == pytest.approx(0.5, abs=0.03)
    assert sum(draw < 0.1 for draw in draws) / len(draws) == pytest.approx(0.1, abs=0.03)


def ratios(network: nn.Module, of: str) -> list[float]:
    """IFD by two passes for each example: as it is, and with nothing that the user said."""
    found = []
    for example in examples(SCORED):
        given = mean_loss(network, CHAT.render(example.messages()))
        alone = mean_loss(network, CHAT.render(dataclasses.replace(example, instruction="", system="").messages()))
        found.append(math.exp(given) / math.exp(alone) if of == "perplexities" else given / alone)
    return found


@pytest.mark.parametrize("of", ["perplexities", "losses"])
def test_ifd_is_the_ratio_of_two_passes(score: Scoring, network: nn.Module, of: Any) -> None:
    """Some examples are misaligned, and worse than all others where high difficulty is preferred."""
    expected = ratios(network, of)
    assert min(expected) < 1 < max(expected)
    found = score(IFDSignal(of=of))
    assert [one.details["ifd"] for one in found] == pytest.approx(expected, rel=1e-4)
    assert values(found) == pytest.approx([ratio if ratio < 1 else 1 - ratio for ratio in expected], rel=1e-3)
    assert values(score(IFDSignal(of=of, misaligned_last=False))) == pytest.approx(expected, rel=1e-4)
    assert values(score(IFDSignal("low", of=of))) == pytest.approx([-ratio for ratio in expected], rel=1e-4)
    share = sum(ratio >= 1 for ratio in expected) / len(expected)
    assert IFDSignal(of=of).summary(found)["misaligned_rate"] == share


def test_ifd_of_a_cut_response_compares_the_same_tokens(score: Scoring, network: nn.Module) -> None:
    """The response `it is a.` is cut behind `it i`; alone it is cut there too."""
    whole = render(SCORED)[0]
    cut = CHAT.cut(whole, whole.completion_mask.index(True) + 4)
    signal = IFDSignal("low")
    score(signal)
    batch = collate([cut], pad_id=0)
    columns = signal.measure(score.student, examples(SCORED)[:1], batch, torch.tensor([mean_loss(network, cut)]))
    alone = CHAT.render([{"role": "user", "content": ""}, {"role": "assistant", "content": "it is a."}])
    assert columns["loss_alone"] == pytest.approx(
        [mean_loss(network, CHAT.cut(alone, alone.completion_mask.index(True) + 4))], rel=1e-5
    )


@pytest.mark.parametrize("loss_on", ["all", "last"])
def test_ifd_of_several_turns_leaves_out_what_the_user_said_alone(
    score: Scoring, network: nn.Module, monkeypatch: pytest.MonkeyPatch, loss_on: LossOn
) -> None:
    """Earlier answers stay where they were, and the loss is of the same ones."""
    chat = ChatTemplate(tiny_tokenizer(), loss_on=loss_on)
    monkeypatch.setattr(callbacks.instruction_difficulty, "load_chat_template", lambda source: chat)
    history = (Turn("user", "is it?"), Turn("assistant", "it is"), Turn("user", "so?"), Turn("assistant", "a", 0))
    asked = Example(id="e", instruction="why?", response="nobody knows.", system="be brief", history=history)
    silent = tuple(turn if turn.role == "assistant" else Turn("user", "") for turn in history)
    alone = chat.render_example(dataclasses.replace(asked, instruction="", system="", history=silent))
    signal, whole = IFDSignal("low"), chat.render_example(asked)
    score(signal)
    columns = signal.measure(
        score.student, [asked], collate([whole], pad_id=0), torch.tensor([mean_loss(network, whole)])
    )
    assert columns["loss_alone"] == pytest.approx([mean_loss(network, alone)], rel=1e-5)


@pytest.mark.parametrize("max_rank", [1, 4, 100])
def test_rank_surprisal_ratio_token_by_token(score: Scoring, network: nn.Module, max_rank: int) -> None:
    expected = []
    for one in render(SCORED):
        terms = response_terms(network, one)
        expected.append(sum(min(rank, max_rank) for _, rank in terms) / sum(surprisal for surprisal, _ in terms))
    assert values(score(RankSurprisalSignal(max_rank=max_rank))) == pytest.approx([-one for one in expected], rel=1e-4)
    assert values(score(RankSurprisalSignal("high", max_rank))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("pad_token_id", [0, None], ids=["padded", "without padding token"])
def test_rewards_are_those_of_a_direct_call(score: Scoring, tmp_path: Path, pad_token_id: int | None) -> None:
    path = save_tiny_reward_model(tmp_path / "reward", pad_token_id=pad_token_id)
    reward_model = LlamaForSequenceClassification.from_pretrained(path).eval()
    expected = []
    for example in examples(SCORED):
        ids = tiny_tokenizer().apply_chat_template(example.messages(), return_tensors="pt", return_dict=True)
        with torch.no_grad():
            expected.append(reward_model(ids["input_ids"][:, :40]).logits[0, 0].item())
    signal = RewardModelSignal(path, batch_size=3)
    found = score(signal)
    assert values(found) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    # The longest, e0: 8 characters of `<system>` and 8 behind it, then 1 + 11 + 1 + 8 + 1 tokens; 38 of 40.
    assert signal.summary(found)["cut_to_context"] == 0
    assert not hasattr(signal, "_reward_model"), "the reward model has left memory"


def test_conversations_are_cut_to_the_reward_models_context(score: Scoring, tmp_path: Path) -> None:
    path = save_tiny_reward_model(tmp_path / "reward")
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    (tmp_path / "reward" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 30}))
    signal = RewardModelSignal(path)
    found = score(signal)
    lengths = [
        len(tiny_tokenizer().apply_chat_template(one.messages(), return_dict=True)["input_ids"])
        for one in examples(SCORED)
    ]
    assert [one.details["tokens_cut"] for one in found] == [max(0, length - 30) for length in lengths]
    assert signal.summary(found)["cut_to_context"] == sum(length > 30 for length in lengths) > 0


def test_reward_models_that_are_none_are_refused(score: Scoring, backbone: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no reward model for the backbone '.*nowhere': give a hub id, a local directory"
    ):
        score(RewardModelSignal(str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="has 3 labels, so that it gives no single reward"):
        score(RewardModelSignal(save_tiny_reward_model(tmp_path / "three", num_labels=3)))
    headless = tmp_path / "headless"
    save_tiny_model(headless)
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps({**config, "id2label": {"0": "reward"}}))
    with pytest.raises(ValueError, match=r"no weights for 1 parameters of the reward model \(first: score\.weight\)"):
        score(RewardModelSignal(str(headless)))
    silent = save_tiny_reward_model(tmp_path / "silent")
    (tmp_path / "silent" / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"reward model '.*silent' brings no chat template"):
        score(RewardModelSignal(silent))
    with pytest.raises(ValueError, match="batch_size: expected int >= 1, found 0"):
        RewardModelSignal(silent, batch_size=0)
    with pytest.raises(ValueError, match="max_rank: expected int >= 1, found 0"):
        RankSurprisalSignal(max_rank=0)


def gradient(network: nn.Module, rendered: list[Rendered]) -> Tensor:
    """Gradient of the mean over examples of the mean loss per token, over what is trained, in one row."""
    losses = []
    for one in rendered:
        ids = torch.tensor(one.input_ids)
        log_probabilities = network(input_ids=ids[None]).logits[0].log_softmax(dim=-1)
        places = [place for place in range(1, len(ids)) if one.completion_mask[place]]
        losses.append(-torch.stack([log_probabilities[place - 1, ids[place]] for place in places]).mean())
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rows = torch.autograd.grad(torch.stack(losses).mean(), parameters)
    return torch.cat([row.flatten() for row in rows])


@pytest.mark.parametrize("preconditioned", [True, False])
def test_cosine_is_that_of_autograd_example_by_example(
    score: Scoring, network: nn.Module, checkpoint: str, preconditioned: bool
) -> None:
    """The moments of the checkpoint are after two steps; Adam's third one is written out here."""
    reference = gradient(network, render(REFERENCE))
    states = torch.load(checkpoint, weights_only=True)["optimizer_states"][0]["state"]
    first, second = (torch.cat([states[n][key].flatten() for n in sorted(states)]) for key in ("exp_avg", "exp_avg_sq"))
    expected = []
    for one in render(SCORED):
        move = gradient(network, [one])
        if preconditioned:
            m, v = 0.9 * first + 0.1 * move, 0.999 * second + 0.001 * move**2
            move = (m / (1 - 0.9**3)) / ((v / (1 - 0.999**3)).sqrt() + 1e-8)
        expected.append((move @ reference / (move.norm() * reference.norm())).item())
    found = score(GradientCosineSignal(preconditioned, reference_batch_tokens=30))
    assert values(found) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert max(expected) - min(expected) > 0.01, "there is something to compare"


def test_cosine_takes_no_larger_passes_than_there_is_room_for(score: Scoring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of influence, for which `plan` counts; the numbers are the same."""
    expected = values(score(GradientCosineSignal()))
    seen: list[int] = []

    def small(network: nn.Module, device: torch.device, wanted: int) -> int:
        return 8

    def watched(loss: Any, params: Any, batch_tokens: int) -> Any:
        seen.append(batch_tokens)
        return per_example_gradients(loss, params, batch_tokens)

    monkeypatch.setattr(callbacks.gradient_cosine, "gradient_tokens", small)
    monkeypatch.setattr(callbacks.gradient_cosine, "per_example_gradients", watched)
    assert values(score(GradientCosineSignal())) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert seen == [8]


def test_projected_gradients_are_those_of_autograd(score: Scoring, network: nn.Module) -> None:
    """With more dimensions than parameters nothing is lost but their order and their signs."""
    expected = torch.stack([gradient(network, [one]) for one in render(SCORED)])
    found = score(ProjectedGradientSignal(dim=2 * expected.shape[1]))
    rows = torch.tensor([one.gradient for one in found])
    assert torch.allclose(rows @ rows.T, expected @ expected.T, rtol=1e-3, atol=1e-6)
    assert values(found) == pytest.approx((-expected.norm(dim=1)).tolist(), rel=1e-3)
    together, alone = (score(ProjectedGradientSignal(dim=7, memory_budget=budget)) for budget in (None, 1))
    for one, other in zip(together, alone, strict=True):
        assert one.gradient == pytest.approx(other.gradient, rel=1e-4, abs=1e-6)


def test_cosine_of_an_untrained_student_has_no_moments(score: Scoring) -> None:
    score.checkpoint = None
    with pytest.raises(ValueError, match=r"needs the moments of the student's training, .* set preconditioned: false"):
        score(GradientCosineSignal())
    assert len(score(GradientCosineSignal(preconditioned=False))) == len(SCORED)


def test_the_stage_reports_direction_quantiles_and_ties(backbone: str, tmp_path: Path) -> None:
    """Lengths with the end token: 9, 10, 2, 10 and 2; two pairs of examples are tied. Another start says the same."""
    write(tmp_path / "data" / "examples.jsonl", examples(SCORED))
    reference = tmp_path / "reference.jsonl"
    reference.write_text("".join(json.dumps({"instruction": i, "response": r}) + "\n" for i, r in REFERENCE))
    context = stage_context(
        tmp_path / "scores",
        inputs={"examples": tmp_path / "data", "student": None},
        data=DataSources(seed_tasks="none", reference=str(reference)),
        student=lambda: make_student(backbone),
        trainer=quiet_trainer,
    )
    first = ScoreStage("data", ResponseLengthSignal("low")).run(context)
    report = (tmp_path / "scores" / "signal.json").read_bytes()
    again = ScoreStage("data", ResponseLengthSignal("low")).run(context)

    assert first == again
    assert (tmp_path / "scores" / "signal.json").read_bytes() == report
    assert json.loads(report) == first["signal"]
    assert first["signal"]["direction"] == "low"
    assert first["signal"]["quantity"] == "response_tokens"
    assert first["signal"]["tied"] == 4
    quantiles = first["signal"]["quantiles"]
    assert (quantiles["0"], quantiles["0.5"], quantiles["1"]) == (2, 9, 10)
