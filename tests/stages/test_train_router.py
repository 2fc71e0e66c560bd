"""TrainRouter: it finds who should answer where prompts tell it, says so where they do not, and survives kills."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from recorded_pools import (
    TEACHERS,
    best_teacher,
    inputs,
    known_qualities,
    pool,
    prompts,
    random_qualities,
)
from stage_runs import Killed, quiet_trainer, stage_context
from tiny_models import save_tiny_model, tiny_tokenizer

from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example
from montessori_pl.models.loading import LoraSettings, ModelSource, load_model
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.routing import ConstantRouter, LearnedRouter, Prompt, load_router
from montessori_pl.routing.encoder import PromptEncoder
from montessori_pl.stages import StageContext, StageError, TrainRouter
from montessori_pl.stages.selection import responses as pools
from montessori_pl.stages.train_router import Calibration

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You are using a custom batch sampler"),
]

TEXTS = prompts(100)
UNSEEN = prompts(60, seed=77)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def context(tmp_path: Path, backbone: str) -> Callable[..., StageContext]:
    """The stage with a pool; `learnability` is as `quality` unless given."""

    def make(
        examples: Sequence[Example],
        quality: dict[str, float],
        learnability: dict[str, float] | None = None,
        name: str = "it",
        model: str = backbone,
        **changes: Any,
    ) -> StageContext:
        found = inputs(tmp_path, examples, quality=quality, learnability=learnability or quality)
        settings: dict[str, Any] = {
            "inputs": found,
            "student": lambda: StudentModule(model, lora=LoraSettings(r=2, alpha=4)),
            "trainer": quiet_trainer,
        }
        return stage_context(tmp_path / name, **{**settings, **changes})

    return make


def accuracy(context: StageContext, texts: Sequence[str] = UNSEEN) -> float:
    """How often the router that a stage has left asks the right teacher."""
    routed = load_router(context.directory / "routing").route(texts)
    return sum(name == best_teacher(text) for name, text in zip(routed, texts, strict=True)) / len(texts)


def test_features_are_the_hidden_state_where_the_answer_begins(backbone: str) -> None:
    """Against one prompt at a time, without padding; of a long prompt the end is read."""
    asked = [Prompt("abc"), Prompt("a longer one?", "be brief"), Prompt("x"), Prompt("abcdefghijkl" * 3)]
    encoder = PromptEncoder(ModelSource(backbone), max_length=30, batch_tokens=64)
    model, chat_template = load_model(ModelSource(backbone)), ChatTemplate(tiny_tokenizer())
    expected = []
    for prompt in asked:
        ids = chat_template.prompt_ids(prompt.messages())[-30:]
        assert ids[-1] == chat_template.tokenizer.convert_tokens_to_ids("<assistant>")
        with torch.no_grad():
            expected.append(model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1].double())
    torch.testing.assert_close(encoder.features(asked), torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_it_asks_whom_the_prompt_names(
    seed: int, context: Callable[..., StageContext], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Three encoders with random weights, three pools: the right teacher for nearly all unseen prompts."""
    model = save_tiny_model(tmp_path_factory.mktemp("other"), seed=seed)
    examples = pool(prompts(100, seed=seed))
    here = context(examples, known_qualities(examples, seed), model=model, seed=seed)
    metrics = TrainRouter("pool", "quality", "learnability").run(here)
    assert accuracy(here) > 0.9
    assert (metrics["prompts"], metrics["prompts_held_out"]) == (100, 20)
    assert metrics["gain"]["reward"]["low"] > 0.3
    assert metrics["gain"]["quality"]["low"] > 0.1
    assert metrics["router"]["regret"] < 0.2 < 0.8 < metrics["constant"]["regret"]
    assert metrics["router"]["hit_at_1"] >= 0.9 > 0.7 > metrics["constant"]["hit_at_1"]
    assert metrics["oracle"]["regret"] == 0
    assert sum(metrics["router"]["shares"].values()) == pytest.approx(1)
    assert metrics["pair_loss"] < 0.3
    assert not metrics["fell_back_to_constant"]
    assert metrics["finding"].startswith(f"the router is better than always asking {metrics['best_single_teacher']}: i")
    assert not (here.directory / "features").exists()
    json.dumps(metrics, allow_nan=False)


@pytest.mark.slow
def test_it_says_so_where_no_prompt_tells_anything(context: Callable[..., StageContext]) -> None:
    examples = pool(TEXTS)
    quality = random_qualities(examples)
    here = context(examples, quality)
    metrics = TrainRouter("pool", "quality", "learnability").run(here)
    best = metrics["best_single_teacher"]
    assert metrics["finding"].startswith(f"the router is not better than always asking {best}: it gains ")
    assert metrics["finding"].endswith(f"on 20 held-out prompts, so that {best} gets all prompts")
    assert metrics["fell_back_to_constant"]
    router = load_router(here.directory / "routing")
    assert isinstance(router, ConstantRouter)
    assert router.route(UNSEEN) == [best] * len(UNSEEN)

    kept = context(examples, quality, name="kept")
    metrics = TrainRouter("pool", "quality", "learnability", fallback_to_constant=False).run(kept)
    assert not metrics["fell_back_to_constant"]
    assert metrics["finding"].endswith("on 20 held-out prompts")
    assert isinstance(load_router(kept.directory / "routing"), LearnedRouter)


def test_all_routers_of_a_run_are_judged_by_the_same_prompts(context: Callable[..., StageContext]) -> None:
    """Whatever the stage is called, so that the constant is worth the same for all; another run draws anew."""
    examples = pool(TEXTS)
    quality = known_qualities(examples)
    stage = TrainRouter("pool", "quality", "learnability", penalties=(0.01,))
    first, second, other = (
        stage.run(context(examples, quality, name=name, seed=seed, run_seed=run_seed))
        for name, seed, run_seed in (("first", 1, 3), ("second", 2, 3), ("other", 1, 4))
    )
    names = ("router", "constant", "oracle", "pair_loss", "pair_loss_of_constant")
    assert [first[name] for name in names] == [second[name] for name in names]
    assert first["constant"] != other["constant"]


def test_routers_that_can_compare_other_prompts_hold_out_the_same_ones() -> None:
    """Two of five prompts cannot be compared for the second; of those that remain the same ones are held out."""
    everything = [Prompt(text) for text in TEXTS]
    halves = []
    for some in (everything, everything[::5] + everything[1::5] + everything[2::5]):
        tables = {"reward": np.zeros((len(some), 3))}
        learned, judged = Calibration(some, tables).split(0.3, 7, everything)
        assert sorted([*learned.prompts, *judged.prompts]) == sorted(some)
        halves.append({*judged.prompts})
    assert len(halves[0]) == 30
    assert halves[1] == halves[0] & {*everything[::5], *everything[1::5], *everything[2::5]}


@pytest.mark.slow
def test_the_constant_has_a_loss_too(context: Callable[..., StageContext]) -> None:
    """Where prompts tell who is best the router's is lower; where they tell nothing it is not, and no penalty helps."""
    examples = pool(TEXTS)
    told = TrainRouter("pool", "quality", "learnability").run(context(examples, known_qualities(examples)))
    assert told["pair_loss"] < 0.3 < 0.6 < told["pair_loss_of_constant"] < 0.72
    assert min(told["cross_validated_loss"].values()) < 0.3 < 0.6 < told["cross_validated_loss_of_constant"] < 0.72

    stage = TrainRouter("pool", "quality", "learnability", penalties=(0.01, 0.1))
    drawn = stage.run(context(examples, random_qualities(examples), name="drawn"))
    assert drawn["penalty"] == 0.1
    (loss, constant) = drawn["cross_validated_loss"]["0.1"], drawn["cross_validated_loss_of_constant"]
    assert constant < loss
    assert drawn["warnings"] == [
        f"penalty 0.1, the highest of `penalties`, has the least cross-validated loss ({loss:.3f}; the same "
        f"coefficients for all prompts have {constant:.3f}): a better one may lie beyond, so add higher ones"
    ]


@pytest.mark.parametrize(
    ("penalties", "edge"),
    [((1e-2, 1e2, 1e3), "lowest"), ((1e-2,), None), ((1e-6, 1e-2, 1e2), None), ((1e-2, 1e-2), None)],
)
def test_the_edge_of_the_penalties_is_named(
    penalties: tuple[float, ...], edge: str | None, context: Callable[..., StageContext]
) -> None:
    examples = pool(TEXTS)
    stage = TrainRouter("pool", "quality", "learnability", penalties=penalties)
    metrics = stage.run(context(examples, known_qualities(examples)))
    assert metrics["penalty"] == 1e-2
    assert [sentence.split(",")[1] for sentence in metrics["warnings"]] == [f" the {edge} of `penalties`"] * bool(edge)


def own_words(examples: Sequence[Example], cheats: Sequence[str]) -> list[Example]:
    """As they are from the cheats, who always say the same; from the others different ones."""
    return [
        one if one.teacher in cheats else Example.from_dict({**vars(one), "response": f"a{one.id} b{one.id} c{one.id}"})
        for one in examples
    ]


@pytest.mark.slow
def test_a_teacher_who_always_says_the_same_is_asked_nothing(context: Callable[..., StageContext]) -> None:
    examples = own_words(pool(TEXTS), ["steady"])
    quality = known_qualities(examples) | {one.id: 5.0 for one in examples if one.teacher == "steady"}
    here = context(examples, quality)
    metrics = TrainRouter("pool", "quality", "learnability").run(here)
    assert metrics["teachers_left_out"] == ["steady"]
    assert metrics["warnings"][0].startswith("steady repeats itself: 100% of its responses to 100 prompts are given to")
    assert set(metrics["router"]["shares"]) == {"digits", "letters"}
    assert accuracy(here) > 0.9

    kept = TrainRouter("pool", "quality", "learnability", max_repeated_rate=None)
    assert kept.run(context(examples, quality, name="kept"))["best_single_teacher"] == "steady"


def test_where_one_teacher_is_left_it_gets_all_prompts(context: Callable[..., StageContext]) -> None:
    examples = own_words(pool(TEXTS, ("letters", "steady")), ["steady"])
    here = context(examples, known_qualities(examples))
    metrics = TrainRouter("pool", "quality", "learnability").run(here)
    assert metrics["finding"] == "letters is the only teacher that was not left out, so that it gets all prompts"
    assert metrics["fell_back_to_constant"]
    assert load_router(here.directory / "routing").route(UNSEEN) == ["letters"] * len(UNSEEN)


@pytest.mark.slow
def test_alpha_weighs_quality_and_learnability(context: Callable[..., StageContext]) -> None:
    """Quality knows who should answer, and learnability always prefers the steady one."""
    examples = pool(TEXTS)
    quality = known_qualities(examples)
    steady = {example.id: float(example.teacher == "steady") for example in examples}
    here = context(examples, quality, steady, name="quality")
    assert TrainRouter("pool", "quality", "learnability", alpha=0.1).run(here)["router"]["shares"]["steady"] < 0.1
    here = context(examples, quality, steady, name="learnability")
    metrics = TrainRouter("pool", "quality", "learnability", alpha=0.9).run(here)
    assert metrics["best_single_teacher"] == "steady"
    assert metrics["fell_back_to_constant"], "always asking the steady one cannot be improved on"


@pytest.mark.slow
def test_the_order_of_records_and_of_names_changes_nothing(context: Callable[..., StageContext]) -> None:
    examples = pool(TEXTS)
    quality = known_qualities(examples)
    stage = TrainRouter("pool", "quality", "learnability")
    first = context(examples, quality, name="first")
    expected = stage.run(first)
    shuffled = context(random.Random(1).sample(examples, len(examples)), quality, name="shuffled")
    assert json.dumps(stage.run(shuffled)) == json.dumps(expected)
    for path in sorted((first.directory / "routing").iterdir()):
        assert path.read_bytes() == (shuffled.directory / "routing" / path.name).read_bytes()

    other_names = dict(zip(TEACHERS, ("z", "y", "x"), strict=True))
    renamed = [Example.from_dict({**vars(example), "teacher": other_names[example.teacher]}) for example in examples]
    here = context(renamed, quality, name="renamed")
    found = stage.run(here)
    shares = {other_names[name]: share for name, share in expected["router"]["shares"].items()}
    assert found["router"]["shares"] == pytest.approx(shares)
    assert found["gain"]["reward"]["mean"] == pytest.approx(expected["gain"]["reward"]["mean"])
    before, after = (load_router(one.directory / "routing").route(UNSEEN) for one in (first, here))
    assert [other_names[name] for name in before] == after


@pytest.mark.slow
def test_missing_answers_are_fewer_pairs(context: Callable[..., StageContext]) -> None:
    """A third of the responses is gone; of prompts with one response left nothing can be learned."""
    rng = random.Random(4)
    examples = [example for example in pool(TEXTS) if rng.random() < 0.67]
    answers = [sum(example.instruction == text for example in examples) for text in TEXTS]
    assert 1 in answers
    here = context(examples, known_qualities(examples))
    metrics = TrainRouter("pool", "quality", "learnability").run(here)
    assert metrics["prompts_with_pairs"] == sum(count > 1 for count in answers)
    assert accuracy(here) > 0.8


@pytest.mark.slow
def test_a_kill_costs_no_more_than_a_chunk(
    context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "CHUNK", 16)
    examples = pool(TEXTS)
    quality = known_qualities(examples)
    stage = TrainRouter("pool", "quality", "learnability")
    whole = context(examples, quality, name="whole")
    expected = stage.run(whole)

    killed = context(examples, quality, name="killed")
    read: list[int] = []
    features = PromptEncoder.features

    def counted(self: PromptEncoder, asked: Sequence[Prompt]) -> torch.Tensor:
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(len(asked))
        return features(self, asked)

    monkeypatch.setattr(PromptEncoder, "features", counted)
    with pytest.raises(KeyboardInterrupt):
        stage.run(killed)
    assert read == [16, 16]
    (killed.directory / "features" / "00000032.draft").write_bytes(b"torn")
    read[:] = [0] * 3  # from here on only counted
    assert stage.run(killed) == expected
    assert sum(read[3:]) == 80 - 32 + 20, "the rest of those it learns from, and those it is judged by"
    for path in sorted((whole.directory / "routing").iterdir()):
        assert path.read_bytes() == (killed.directory / "routing" / path.name).read_bytes()


TRAINING = TrainingSettings(
    lr=0.02, schedule="constant", epochs=6, batch_size=16, checkpoint_every_n_steps=5, gradient_clip_val=1.0
)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LoraSettings(r=2, alpha=4)])
def test_the_encoder_can_be_trained_too(lora: LoraSettings | None, context: Callable[..., StageContext]) -> None:
    """Killed inside an epoch and again after training, it ends with the same bytes as undisturbed."""
    examples = pool(TEXTS)
    quality = known_qualities(examples)
    stage = TrainRouter("pool", "quality", "learnability", training=TRAINING, lora=lora)
    torch.manual_seed(0)
    whole = context(examples, quality, name="whole")
    expected = stage.run(whole)
    assert expected["steps"] == 30
    assert accuracy(whole) > 0.9
    assert not expected["fell_back_to_constant"]

    class Kill(Callback):
        """Dies after so many steps."""

        def __init__(self, at_step: int) -> None:
            self.at_step = at_step

        def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
            if trainer.global_step == self.at_step:
                raise Killed

    def killed_at(step: int) -> Callable[..., Trainer]:
        return lambda callbacks, **arguments: quiet_trainer([*callbacks, Kill(step)], **arguments)

    for step in (8, 19):
        torch.manual_seed(0)
        with pytest.raises(Killed):
            stage.run(context(examples, quality, name="killed", trainer=killed_at(step)))
    torch.manual_seed(0)
    killed = context(examples, quality, name="killed")
    for _ in range(2):  # the second time, everything is there but the manifest's entry
        assert stage.run(killed) == expected
        files = sorted(path for path in (whole.directory / "routing").rglob("*") if path.is_file())
        assert len(files) >= 4
        for path in files:
            assert path.read_bytes() == (killed.directory / path.relative_to(whole.directory)).read_bytes()


def test_mistakes(context: Callable[..., StageContext]) -> None:
    for settings, message in (
        ({"alpha": 1.5}, r"alpha: expected float >= 0 and <= 1, found 1\.5"),
        ({"held_out": 0.0}, r"held_out: expected float > 0 and < 1, found 0"),
        ({"tie_margin": -1.0}, r"tie_margin: expected float >= 0.*, found -1"),
        ({"max_repeated_rate": -0.1}, r"max_repeated_rate: expected float >= 0 and <= 1( or null)?, found -0"),
        ({"penalties": (0.0,)}, r"penalties\[0\]: expected float > 0.*, found 0"),
        ({"lora": LoraSettings()}, r"lora says how the encoder is trained, and without `training` it is not"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainRouter("pool", "quality", "learnability", **settings)  # type: ignore[arg-type]
    stage = TrainRouter("pool", "quality", "learnability")
    examples = pool(TEXTS[:19])
    with pytest.raises(StageError, match=r"needs 20 prompts to which two teachers or more .* finds 19 of 19; let the"):
        stage.run(context(examples, known_qualities(examples)))
    with pytest.raises(ValueError, match=r"holds no router \(router\.json is missing\)"):
        load_router(Path("nowhere"))
