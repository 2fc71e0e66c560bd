"""DPO over responses: answers to one instruction are scored, paired and aligned on, system messages included."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning
import pytest
from stage_runs import quiet_trainer, stage_context, write
from tiny_models import save_tiny_model, tiny_tokenizer

from callbacks import ResponseLengthSignal
from montessori_pl.batches.sources import DataSources
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, Message, PreferencePair, read_lines, read_records, stable_seed
from montessori_pl.generation import Completion, GenerationBackend, Request, Sampling, TransformersBackend
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.loading import LoraSettings, ModelSource
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.stages import AlignTeacher, BuildPreferences, GenerateResponses, ScoreExamples, StageContext
from montessori_pl.stages.training.alignment_monitor import AlignmentMonitor, prompts_in_order
from montessori_pl.synthesis.base import SelfInstruct
from montessori_pl.synthesis.collapse import CollapseLimits
from montessori_pl.synthesis.diversity import diversity

pytestmark = pytest.mark.filterwarnings(r"ignore:.*:UserWarning:lightning\..*")  # as the program does

SEED = 3
ASKED = [
    Example(id="1", instruction="why?", response="unused"),
    Example(id="2", instruction="why?", response="unused", system="you are kind."),
    Example(id="3", instruction="so?", response="unused"),
]
ANSWERS = {
    ("", "why?"): ["because.", "so", "because it is."],
    ("you are kind.", "why?"): ["dear", "my friend", "a"],
    ("", "so?"): ["yes", "no.", "yes"],
}
"""What is answered; all answers to the last instruction are of one length."""


class Speaker(GenerationBackend):
    """Answers from the table, in turn."""

    def __init__(self) -> None:
        self.texts = {asked: iter(texts) for asked, texts in ANSWERS.items()}

    def load(self, source: ModelSource) -> None:
        pass

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        return True

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        return [
            Completion(text=next(self.texts[_asked(request.messages)]), finished=True, num_tokens=1)
            for request in requests
        ]

    def close(self) -> None:
        pass


def _asked(messages: Sequence[Message]) -> tuple[str, str]:
    return "".join(one["content"] for one in messages if one["role"] == "system"), messages[-1]["content"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


Context = Callable[..., StageContext]


@pytest.fixture
def context(backbone: str, tmp_path: Path) -> Context:
    """The context of a stage of this name, which reads other stages by theirs."""

    def make(name: str, **inputs: str | None) -> StageContext:
        lightning.seed_everything(SEED, verbose=False)
        return stage_context(
            tmp_path / name,
            seed=SEED,
            inputs={setting: tmp_path / stage if stage else None for setting, stage in inputs.items()},
            data=DataSources("none", str(tmp_path / "asked" / "examples.jsonl")),
            student=lambda: StudentModule(backbone, lora=LoraSettings(r=2, alpha=4)),
            teacher=lambda: TeacherDPOModule(backbone, lora=LoraSettings(r=2, alpha=4)),
            backend=Speaker,
            trainer=quiet_trainer,
        )

    write(tmp_path / "asked" / "examples.jsonl", ASKED)
    return make


@pytest.fixture
def pairs(context: Context, tmp_path: Path) -> list[PreferencePair]:
    """Three answers to each instruction, long ones preferred."""
    answer = GenerateResponses("asked", teachers="base", samples=3)
    answer.run(context("answers", **{"instructions": "asked", "teachers.base": None}))
    ScoreExamples("answers", ResponseLengthSignal("high")).run(context("scores", examples="answers", student=None))
    BuildPreferences("answers", "scores", rule="best_worst").run(context("pairs", examples="answers", scores="scores"))
    return read_records(tmp_path / "pairs" / "pairs.jsonl", PreferencePair)


def test_answers_to_one_instruction_are_paired(pairs: list[PreferencePair]) -> None:
    """The longest answer with the shortest, end token included; where all are as long, there is nothing to prefer."""
    found = [(pair.system, pair.prompt, pair.chosen, pair.rejected, pair.margin) for pair in pairs]
    assert found == [
        ("", "why?", "because it is.", "so", 12.0),
        ("you are kind.", "why?", "my friend", "a", 8.0),
    ]
    assert pairs[1].messages() == ASKED[1].messages()[:-1]


@pytest.mark.slow
def test_the_monitor_evaluates_whole_responses(
    pairs: list[PreferencePair], context: Context, backbone: str, tmp_path: Path
) -> None:
    """The look before the first step, against the base teacher's answers to the same conversations."""
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=2)
    limits = CollapseLimits(**{field.name: None for field in dataclasses.fields(CollapseLimits)})
    monitor = AlignmentMonitor(held_out=0.5, every_n_steps=1, num_samples=48, sampling=sampling, limits=limits)
    stage = AlignTeacher("pairs", TrainingSettings(lr=1e-3, batch_size=1), monitor=monitor, over="response")
    metrics = stage.run(context("aligned", pairs="pairs", teacher=None))
    assert (metrics["pairs"], metrics["held_out_pairs"]) == (1, 1)
    first, *_ = read_lines(tmp_path / "aligned" / "alignment_evaluations.jsonl")

    order = prompts_in_order([(pair.system, pair.prompt) for pair in pairs], SEED)
    messages = {(pair.system, pair.prompt): pair.messages() for pair in pairs}
    requests = [
        Request(messages=messages[order[number % 2]], seed=stable_seed(SEED, "look", number)) for number in range(48)
    ]
    engine = TransformersBackend(device="cpu")
    engine.load(ModelSource(backbone))
    completions = engine.generate(requests, sampling)
    responses = [text for completion in completions if (text := completion.text.strip())]
    assert 0 < len(responses) < 48, "some are empty"
    assert first["parsed_rate"] == len(responses) / 48
    assert {name: first[name] for name in diversity([])} == diversity(responses)
    assert first["samples"] == [completion.text for completion in completions[:3]]
    chat_template = ChatTemplate(tiny_tokenizer())
    assert len({tuple(chat_template.prompt_ids(one)) for one in messages.values()}) == 2, (
        "the system message is part of it"
    )


def test_responses_hold_no_instructions_to_be_found() -> None:
    with pytest.raises(ValueError, match="synthesizer finds instructions, and the pairs are over responses: leave it"):
        AlignTeacher("pairs", TrainingSettings(lr=1e-3), over="response", synthesizer=SelfInstruct())
