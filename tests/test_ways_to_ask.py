"""Each way of asking, from the prompt to DPO: what is trained on is what was sampled, also after a kill.

The model is random over the letters, with `ab` and `abc` beside them, so that most completions are another split of
their text than the tokenizer's, and any text at which a completion stops comes soon.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from stage_runs import Killed, StandIn, stage_context, write
from test_sampled_tokens import LETTERS, bpe_tokenizer
from tiny_models import SPECIAL, save_tiny_model

from montessori_pl.batches.encoding import encode_pairs
from montessori_pl.batches.sources import DataSources
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Example, PreferencePair, PromptFormat, Score, read_records
from montessori_pl.generation import Completion, Request, Sampling, TransformersBackend, transformers_backend
from montessori_pl.generation.base import decoded
from montessori_pl.generation.vllm_backend import _ends
from montessori_pl.models.loading import ModelSource, load_chat_template
from montessori_pl.pairing import pair_examples
from montessori_pl.stages import StageContext, Synthesize
from montessori_pl.synthesis import Magpie, Synthesizer
from montessori_pl.synthesis.filters import InstructionFilter, ResponseFilter

SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=16)


class Open(Synthesizer):
    """Asks for letters in one of the ways."""

    def __init__(self, prompt_format: PromptFormat = "chat", prefill: str = "", stop: str = "") -> None:
        self.prompt_format, self.prefill, self.stop = prompt_format, prefill, stop

    def prompt(
        self,
        rng: random.Random,
        seed_tasks: Sequence[Example],
        written: Sequence[Example],
        num_shots: int | None = None,
    ) -> tuple[str, tuple[str, ...]]:
        return rng.choice(("cab", "bca", "b")), ("seed",)

    def instruction(self, completion: str) -> str:
        return f"{self.prefill}{completion}"


class Asked(Magpie):
    """Keeps also what was cut, which with a random model is nearly all."""

    cut_is_unfinished = False

    def instruction(self, completion: str) -> str:
        return f"b{completion}"


WAYS = {
    "answer": Open(),
    "prefilled": Open(prefill="ab", stop="c"),
    "text": Open("text", stop="ca"),
    "user_turn": Asked(),
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    save_tiny_model(path, vocab_size=len(SPECIAL) + len(LETTERS), initializer_range=0.1)
    bpe_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Request, list[int]]]:
    """All requests that are answered from now on, with the tokens as the model gave them."""
    rows: list[tuple[Request, list[int]]] = []

    def spy(chat_template: ChatTemplate, ids: Sequence[int], num_prompt_tokens: int, request: Request) -> Completion:
        rows.append((request, list(ids)))
        return decoded(chat_template, ids, num_prompt_tokens, request)

    monkeypatch.setattr(transformers_backend, "decoded", spy)
    return rows


def context(directory: Path, backbone: str, backend: TransformersBackend) -> StageContext:
    write(directory.parent / "seeds.jsonl", [Example(id="seed", instruction="cc", response="c")])
    return stage_context(
        directory,
        inputs={"teacher": None},
        data=DataSources(str(directory.parent / "seeds.jsonl"), "none"),
        teacher=lambda: StandIn(backbone),
        backend=lambda: backend,
    )


def stage(synthesizer: Synthesizer) -> Synthesize:
    return Synthesize(
        num_prompts=6,
        samples_per_prompt=4,
        prompts_per_batch=2,
        synthesizer=synthesizer,
        instruction_sampling=SAMPLING,
        response_sampling=SAMPLING,
        instruction_filter=InstructionFilter(min_characters=0, allow_leading_punctuation=True),
        response_filter=ResponseFilter(min_characters=0),
        max_similarity=None,
        decontaminate=False,
        min_acceptance=0,
    )


@pytest.mark.parametrize("way", WAYS)
def test_pairs_are_trained_on_as_they_were_sampled(
    way: str, backbone: str, sampled: list[tuple[Request, list[int]]], tmp_path: Path
) -> None:
    """Against the engine's own rows: the prompt, then tokens up to the end of the turn or to the stop, and no more."""
    stage(WAYS[way]).run(context(tmp_path / "data", backbone, TransformersBackend(device="cpu")))
    chat_template, synthesizer = load_chat_template(ModelSource(backbone)), WAYS[way]
    expected = set()
    for request, row in sampled:
        turn, ids = chat_template.open_turn(request.messages), list[int]()
        for id in row:  # one token after another, as a reader would
            ids.append(id)
            if id == turn.end_id or (request.stop and request.stop in chat_template.decode(ids, turn)[0]):
                break
        expected.add((*chat_template.prompt_ids(request.messages), *ids))

    examples = read_records(tmp_path / "data" / "examples.jsonl", Example)
    assert len(examples) > 12
    values = {one.id: Score(id=one.id, value=float(number)) for number, one in enumerate(examples)}
    pairs = [
        PreferencePair.from_dict(json.loads(pair.to_json()))
        for pair in pair_examples(examples, values, rule="best_worst")
    ]
    encoded = encode_pairs(pairs, chat_template, 96)
    assert len(encoded) == len(pairs) >= 4
    sides = [side for pair in encoded for side in (pair.chosen, pair.rejected)]
    assert all(tuple(side.input_ids) in expected for side in sides)
    for pair, side in zip([one for one in pairs for _ in range(2)], sides, strict=True):
        prompt = chat_template.prompt_ids(synthesizer.messages(pair.prompt))
        assert list(side.input_ids[: len(prompt)]) == prompt
        assert list(side.completion_mask) == [place >= len(prompt) for place in range(len(side.input_ids))]
    if synthesizer.stop:
        assert any(one.completion.count(synthesizer.stop) == 1 and not one.completion_finished for one in examples)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_killed_stage_goes_on_as_if_nothing_had_happened(way: str, backbone: str, tmp_path: Path) -> None:
    class Fragile(TransformersBackend):
        calls: Iterator[int] = iter(range(3))

        def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
            if next(self.calls, None) is None:
                raise Killed
            return super().generate(requests, sampling)

    straight, killed = tmp_path / "straight" / "data", tmp_path / "killed" / "data"
    stage(WAYS[way]).run(context(straight, backbone, TransformersBackend(device="cpu")))
    with pytest.raises(Killed):
        stage(WAYS[way]).run(context(killed, backbone, Fragile(device="cpu")))
    stage(WAYS[way]).run(context(killed, backbone, TransformersBackend(device="cpu")))
    files = [path.name for path in sorted(straight.iterdir())]
    assert [path.name for path in sorted(killed.iterdir())] == files
    assert all((killed / name).read_bytes() == (straight / name).read_bytes() for name in files)


def test_requests_that_end_differently_may_come_together(backbone: str) -> None:
    """Each is completed as it is alone."""
    engine = TransformersBackend(device="cpu")
    engine.load(ModelSource(backbone))
    requests = [
        Request(messages=one.messages("cab"), seed=seed, stop=one.stop) for seed in range(4) for one in WAYS.values()
    ]
    alone = [engine.generate([request], SAMPLING)[0] for request in requests]
    assert engine.generate(requests, SAMPLING) == alone
    assert any(completion.finished for completion in alone)
    assert any(request.stop and request.stop in one.text for request, one in zip(requests, alone, strict=True))


def test_tokens_at_which_vllm_ends(backbone: str) -> None:
    """The turn's end, and every token that holds the stop as a whole; a stop in several tokens is found afterwards."""
    chat_template = load_chat_template(ModelSource(backbone))
    ids = chat_template.tokenizer.get_vocab()
    asked = Request(messages=WAYS["prefilled"].messages("cab"), seed=0, stop="b")
    assert _ends(chat_template, asked) == [ids["<end>"], ids["b"], ids["ab"], ids["abc"]]
    assert _ends(chat_template, Request(messages=[], seed=0)) == [ids["<assistant>"]]
