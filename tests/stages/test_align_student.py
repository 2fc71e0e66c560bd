"""AlignStudent: what is trained further, kills, and that its student is read as any other."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from stage_runs import Killed, quiet_trainer, stage_context, write
from tiny_models import save_tiny_model, tiny_tokenizer
from torch import Tensor

from callbacks import GradientCosineSignal, InfluenceProbeCallback, TrainingLossSignal
from montessori_pl.batches.sources import DataSources
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, PreferencePair, read_records
from montessori_pl.data.records import Score as ScoreRecord
from montessori_pl.evaluation import ResponseLoss
from montessori_pl.generation import TransformersBackend
from montessori_pl.models.dpo import DPOModule
from montessori_pl.models.loading import LoraSettings, ModelSource, load_model
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages import (
    AlignStudent,
    Evaluate,
    GenerateResponses,
    ScoreExamples,
    StageContext,
    StageError,
    TrainStudent,
)

pytestmark = pytest.mark.filterwarnings(r"ignore:.*:UserWarning:lightning\..*")  # as the program does

TRAINING = TrainingSettings(lr=3e-2, epochs=2, batch_size=2, checkpoint_every_n_steps=1)
EXAMPLES = [Example(id=str(n), instruction=f"why {word}?", response="it is so") for n, word in enumerate("abcd")]
PAIRS = [
    PreferencePair(
        id=str(n),
        system="be kind." if n == 1 else "",
        prompt=f"why {word}?",
        chosen="it is a b.",
        rejected="no" * (n + 1),
        chosen_id="c",
        rejected_id="r",
        margin=1.0,
        weight=0.5 + n,
    )
    for n, word in enumerate("abcde")
]
"""Five pairs: three steps in each of two epochs."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


AT_THE_END = -1


class Ending(Callback):
    """Ends the process before the batch of this number, or when the last epoch's checkpoint has been written."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.batches = at, 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.at:
            raise Killed
        self.batches += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.at == AT_THE_END:
            raise Killed


Context = Callable[..., StageContext]


@pytest.fixture
def context(backbone: str, tmp_path: Path) -> Context:
    """The context of a stage in a directory of this name, as the runner makes it."""

    def make(name: str, callback: Callback | None = None, **changes: Any) -> StageContext:
        lightning.seed_everything(3, verbose=False)

        def trainer(callbacks: list[Callback], **arguments: Any) -> Trainer:
            return quiet_trainer([*([callback] if callback else []), *callbacks], **arguments)

        settings: dict[str, Any] = {
            "seed": 3,
            "data": DataSources("none", str(tmp_path / "examples" / "examples.jsonl")),
            "student": lambda: StudentModule(backbone, lora=LoraSettings(r=2, alpha=4, dropout=0.1)),
            "trainer": trainer,
        }
        return stage_context(tmp_path / name, **{**settings, **changes})

    write(tmp_path / "examples" / "examples.jsonl", EXAMPLES)
    write(tmp_path / "pairs" / "pairs.jsonl", PAIRS)
    return make


@pytest.fixture(params=["adapter", "whole", "base"])
def before(request: pytest.FixtureRequest, context: Context, tmp_path: Path) -> Path | None:
    """A student with a trained adapter, one that was trained whole, and the base."""
    if request.param == "base":
        return None
    here = context("before", inputs={"examples": tmp_path / "examples"})
    TrainStudent("examples", TRAINING, all_weights=request.param == "whole").run(here)
    return here.directory


Align = Callable[..., dict[str, Any]]


@pytest.fixture
def align(context: Context, before: Path | None, tmp_path: Path) -> Align:
    """One session of the stage; returns its metrics."""

    def run(name: str, callback: Callback | None = None, training: TrainingSettings = TRAINING) -> dict[str, Any]:
        inputs = {"pairs": tmp_path / "pairs", "student": before}
        return AlignStudent("pairs", training, beta=0.3, sft_weight=0.1).run(context(name, callback, inputs=inputs))

    return run


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((directory / "weights").iterdir())}


def slow_loss(source: ModelSource, example: Example) -> float:
    """Transformers' own loss."""
    rendered = ChatTemplate(tiny_tokenizer()).render(example.messages())
    ids = torch.tensor([rendered.input_ids])
    labels = ids.masked_fill(~torch.tensor([rendered.completion_mask]), -100)
    with torch.no_grad():
        return float(load_model(source)(input_ids=ids, labels=labels).loss)


@pytest.mark.slow
def test_killed_before_every_batch(align: Align, tmp_path: Path) -> None:
    """A training that is killed before each batch and at its end leaves the same weights, moments and metrics."""
    counted = Ending()
    metrics = align("whole_run", counted)
    assert (metrics["pairs"], metrics["left_out_as_too_long"], metrics["steps"]) == (5, 0, 6)
    for at in [*range(1, counted.batches + 1), AT_THE_END]:
        with pytest.raises(Killed):
            align("killed", Ending(at))
    assert json.dumps(align("killed")) == json.dumps(metrics)
    assert files(tmp_path / "killed") == files(tmp_path / "whole_run")
    one, two = (torch.load(tmp_path / name / "last.ckpt", weights_only=False) for name in ("killed", "whole_run"))
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer_states"], two["optimizer_states"], rtol=0, atol=0)


class FirstLook(Callback):
    """Log-probabilities of the first batch under policy and reference, before any step."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        if trainer.global_step == 0:
            assert isinstance(pl_module, DPOModule)
            pl_module.network.eval()
            self.policy, self.reference = (found.tolist() for found in pl_module.log_probabilities(batch))
            pl_module.network.train()


@pytest.mark.slow
def test_starts_from_the_student_before_which_is_the_reference(
    align: Align, before: Path | None, backbone: str, tmp_path: Path
) -> None:
    """Policy and reference say of all pairs what the student before says, when it is loaded anew."""
    look, source = FirstLook(), ModelSource(backbone, before / "weights" if before else None)
    align("moved", look, dataclasses.replace(TRAINING, batch_size=5))
    chat_template, expected = ChatTemplate(tiny_tokenizer()), []
    for pair in PAIRS:
        for text in (pair.chosen, pair.rejected):
            example = Example(id="", system=pair.system, instruction=pair.prompt, response=text)
            expected.append(-slow_loss(source, example) * len(chat_template.response_ids(text, True)))
    assert sorted(look.policy) == pytest.approx(sorted(expected), rel=1e-5)
    assert sorted(look.reference) == pytest.approx(sorted(expected), rel=1e-5)
    whole = before is not None and not (before / "weights" / "adapter_config.json").exists()
    assert (tmp_path / "moved" / "weights" / "adapter_config.json").exists() is not whole


@pytest.mark.slow
def test_is_read_as_any_student(
    align: Align, before: Path | None, context: Context, backbone: str, tmp_path: Path
) -> None:
    """Score reads the checkpoint, Evaluate and Answer the weights: the losses are those of the saved weights."""
    align("aligned")
    aligned = tmp_path / "aligned"
    losses = [slow_loss(ModelSource(backbone, aligned / "weights"), example) for example in EXAMPLES]
    others = [slow_loss(ModelSource(backbone, before / "weights" if before else None), one) for one in EXAMPLES]
    assert all(abs(loss - other) > 0.001 for loss, other in zip(losses, others, strict=True))

    inputs: dict[str, Path] = {"examples": tmp_path / "examples", "student": aligned}
    metrics = ScoreExamples("examples", TrainingLossSignal("low")).run(context("scores", inputs=inputs))
    scores = read_records(tmp_path / "scores" / "scores.jsonl", ScoreRecord)
    assert [-score.value for score in scores] == pytest.approx(losses, rel=1e-5)
    assert metrics["reference_loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)

    students = Evaluate(["aligned"], [ResponseLoss()]).run(context("it", inputs={"students.aligned": aligned}))
    assert students["students"]["aligned"]["reference_loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)

    engine = TransformersBackend(device="cpu")
    loaded: list[ModelSource] = []
    engine.load = lambda source: (loaded.append(source), TransformersBackend.load(engine, source))[1]  # type: ignore[method-assign]
    here = context(
        "answers", inputs={"instructions": tmp_path / "examples", "student": aligned}, backend=lambda: engine
    )
    GenerateResponses("examples", student="aligned").run(here)
    assert [source.weights for source in loaded] == [aligned / "weights"]


@pytest.mark.slow
def test_moments_of_preferences_are_not_those_of_examples(
    align: Align, context: Context, backbone: str, tmp_path: Path
) -> None:
    """A step on an example would be another one with them: signals that want them say so."""
    align("aligned")
    inputs = {"examples": tmp_path / "examples", "student": tmp_path / "aligned"}
    with pytest.raises(
        ValueError, match="needs a learning rate: the student was last trained on preferences and not on examples, so"
    ):
        ScoreExamples("examples", InfluenceProbeCallback(method="exact")).run(context("probe", inputs=inputs))
    with pytest.raises(ValueError, match="training, and the student was last trained on preferences and not on examp"):
        ScoreExamples("examples", GradientCosineSignal(preconditioned=True)).run(context("cosine", inputs=inputs))
    values = []
    for moments in ("warm", "fresh"):
        probe = InfluenceProbeCallback(method="exact", lr=1e-3, moments=moments)  # type: ignore[arg-type]
        ScoreExamples("examples", probe).run(context(moments, inputs=inputs))
        values.append((tmp_path / moments / "scores.jsonl").read_bytes())
    assert values[0] == values[1], "there are none to begin with"


def test_all_weights_of_a_base_without_adapter(context: Context, backbone: str, tmp_path: Path) -> None:
    here = context(
        "aligned",
        inputs={"pairs": tmp_path / "pairs", "student": None},
        student=lambda: StudentModule(backbone, lora=None),
    )
    AlignStudent("pairs", TRAINING).run(here)
    assert not (tmp_path / "aligned" / "weights" / "adapter_config.json").exists()


def test_nothing_to_learn(context: Context, tmp_path: Path) -> None:
    here = context("aligned", inputs={"pairs": tmp_path / "pairs", "student": None})
    with pytest.raises(StageError, match=r"iteration_1/aligned has nothing to learn: of 5 pairs in .*, none fits"):
        AlignStudent("pairs", dataclasses.replace(TRAINING, max_length=4)).run(here)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"beta": 0.0}, "beta: expected float > 0 and <= 1000, found 0"),
        (
            {"loss_type": "ipo", "label_smoothing": 0.1},
            "label_smoothing is for the loss types sigmoid and robust, found 'ipo'",
        ),
        (
            {"loss_type": "sft", "sft_weight": 1.0, "label_smoothing": 0.1},
            "label_smoothing is for the loss types sigmoid and robust, found 'sft'",
        ),
        ({"loss_type": "sft"}, "loss_type sft learns .* alone, and sft_weight, .*, is 0: set sft_weight to 1.0"),
    ],
)
def test_mistakes_are_found_when_the_recipe_is_read(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        AlignStudent("pairs", TRAINING, **settings)
