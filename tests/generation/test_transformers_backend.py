"""A completion depends on its request alone, is a sample of the model's softmax, and says how it ended."""

import dataclasses
import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_adapter, save_tiny_model, tiny_tokenizer
from torch import Tensor

from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message
from montessori_pl.generation import Completion, Request, Sampling, TransformersBackend
from montessori_pl.generation.draws import penalized
from montessori_pl.models.loading import (
    LoraSettings,
    ModelSource,
    attach_lora,
    load_chat_template,
    load_model,
    save_weights,
)

END = 2
QUESTIONS = ["a", "why is it so?", "what", "a longer question than that.", "b c d", "so"]
GREEDY = Sampling(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def backend(backbone: str) -> TransformersBackend:
    engine = TransformersBackend(device="cpu")
    engine.load(ModelSource(backbone))
    return engine


def turn(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def requests(num_each: int = 3) -> list[Request]:
    return [Request(messages=turn(text), seed=seed) for text in QUESTIONS for seed in range(num_each)]


def logits_after(source: ModelSource, text: str) -> Tensor:
    """Logits of the completion's first token, shape (V,)."""
    ids = ChatTemplate(tiny_tokenizer()).prompt_ids(turn(text))
    with torch.no_grad():
        logits: Tensor = load_model(source)(input_ids=torch.tensor([ids])).logits[0, -1]
    return logits


def greedy(source: ModelSource, text: str, max_tokens: int) -> tuple[str, bool]:
    """What Transformers' own greedy decoding answers, one prompt at a time."""
    chat_template = ChatTemplate(tiny_tokenizer())
    ids = torch.tensor([chat_template.prompt_ids(turn(text))])
    output = load_model(source).generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=chat_template.end_id,
    )
    return chat_template.decode(output[0, ids.shape[1] :].tolist())


@pytest.mark.slow
@pytest.mark.parametrize(
    "defaults",
    [
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 1},
        {"min_new_tokens": 9, "suppress_tokens": list(range(5, 15)), "begin_suppress_tokens": [16, 17]},
        {"do_sample": True, "top_k": 1, "temperature": 0.1, "min_p": 0.9, "typical_p": 0.1},
        {
            "bad_words_ids": [[9], [10]],
            "forced_bos_token_id": 7,
            "forced_eos_token_id": 2,
            "sequence_bias": [[[8], 9.0]],
        },
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0, "max_length": 20, "stop_strings": ["a"]},
        {"eos_token_id": [5, 6, 7], "guidance_scale": 2.0, "renormalize_logits": True, "return_dict_in_generate": True},
    ],
    ids=lambda defaults: next(iter(defaults)),
)
@pytest.mark.parametrize("adapted", [False, True], ids=["whole model", "under an adapter"])
def test_generation_defaults_of_a_model_do_not_count(
    backbone: str, defaults: dict[str, Any], adapted: bool, tmp_path: Path
) -> None:
    """The same weights with another `generation_config.json` draw the same, and keep the file's values."""
    changed = tmp_path / "model"
    shutil.copytree(backbone, changed)
    config = changed / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | defaults))
    wanted, engine = requests(2), TransformersBackend(device="cpu")
    answers: list[list[Completion]] = []
    for directory in (Path(backbone), changed):
        source = ModelSource(str(directory))
        if adapted:
            source = random_adapter(source, LoraSettings(r=2), tmp_path / f"adapter_{directory.name}")
        model = load_model(source)
        engine.serve(model, load_chat_template(source))
        before = model.generation_config.to_dict()
        for sampling in (GREEDY, Sampling(top_p=1.0, max_tokens=12)):
            answers.append(engine.generate(wanted, sampling))
        assert model.generation_config.to_dict() == before
    assert answers[:2] == answers[2:]
    assert len({one.text for one in answers[0]}) > 3, "the answers could differ"


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, top_p=1.0, max_tokens=10),
        Sampling(temperature=0.7, top_p=0.8, presence_penalty=1.0, max_tokens=10),
        GREEDY,
    ],
    ids=["softmax", "nucleus with penalty", "greedy"],
)
def test_completion_depends_on_its_request_alone(backend: TransformersBackend, sampling: Sampling) -> None:
    """Neither the order of the requests, nor what stands beside one, nor how many fit into a batch changes it."""
    wanted = requests()
    together = backend.generate(wanted, sampling)
    assert [backend.generate([request], sampling)[0] for request in wanted] == together
    assert backend.generate(wanted[::-1], sampling) == together[::-1]
    assert backend.generate(wanted[4:9], sampling) == together[4:9]
    backend.max_batch_tokens = 60
    assert backend.generate(wanted, sampling) == together
    if sampling.temperature:
        assert len({completion.text for completion in together}) > len(QUESTIONS), "other seeds, other completions"


def test_temperature_zero_is_greedy_decoding(backend: TransformersBackend, backbone: str) -> None:
    completions = backend.generate(requests(1), GREEDY)
    expected = [greedy(ModelSource(backbone), text, 12) for text in QUESTIONS]
    assert [(completion.text, completion.finished) for completion in completions] == expected


def outcomes(completions: Sequence[Completion]) -> Counter[tuple[str, bool]]:
    return Counter((completion.text, completion.finished) for completion in completions)


def expected_outcomes(probabilities: Tensor) -> Counter[tuple[str, bool]]:
    """Probabilities of one-token completions; special tokens but the end are invisible and count together."""
    chat_template, expected = ChatTemplate(tiny_tokenizer()), Counter[tuple[str, bool]]()
    for token, probability in enumerate(probabilities.tolist()):
        expected[chat_template.decode([token])] += probability
    return expected


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.7, 1.0), (1.0, 0.6)])
def test_samples_follow_the_softmax(
    backend: TransformersBackend, backbone: str, temperature: float, top_p: float
) -> None:
    """4,000 first tokens against their probabilities by Pearson's chi-square: k - 1 on average, spread sqrt(2 (k - 1)).

    With top_p .6 the nucleus is the smallest set of the likeliest tokens whose probabilities reach .6, renormalised;
    nothing outside of it is ever drawn.
    """
    probabilities = (logits_after(ModelSource(backbone), "why") / temperature).softmax(dim=-1)
    descending, order = probabilities.sort(descending=True)
    outside = order[descending.cumsum(0) - descending >= top_p]
    probabilities[outside] = 0
    expected = expected_outcomes(probabilities / probabilities.sum())

    number = 4000
    wanted = [Request(messages=turn("why"), seed=seed) for seed in range(number)]
    found = outcomes(backend.generate(wanted, Sampling(temperature=temperature, top_p=top_p, max_tokens=1)))
    assert found.keys() <= {outcome for outcome, probability in expected.items() if probability > 0}
    likely = {outcome: number * probability for outcome, probability in expected.items() if number * probability >= 5}
    chi_square = sum((found[outcome] - mean) ** 2 / mean for outcome, mean in likely.items())
    freedom = len(likely) - 1
    assert freedom >= 3
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_presence_penalty_is_subtracted_once_from_what_the_completion_holds() -> None:
    """Completion (5, 5, 3): tokens 5 and 3 lose .5, however often they came."""
    scores = torch.zeros(1, 7)
    assert penalized(scores, torch.tensor([[5, 5, 3]]), 0.5).tolist() == [[0, 0, 0, -0.5, 0, -0.5, 0]]
    assert not scores.any(), "the logits themselves are not changed"


def test_penalised_completion_does_not_repeat_itself(backend: TransformersBackend) -> None:
    """A penalty beyond all logits lets a token come again only when all others have come."""
    plain = backend.generate(requests(1), GREEDY)
    beyond = dataclasses.replace(GREEDY)
    object.__setattr__(beyond, "presence_penalty", 1e6)  # as no setting may say
    penalised = backend.generate(requests(1), beyond)
    assert any(len(set(completion.text)) < len(completion.text) for completion in plain)
    assert all(len(set(completion.text)) == len(completion.text) for completion in penalised)


@pytest.mark.slow
def test_adapter_is_used(backend: TransformersBackend, backbone: str, tmp_path: Path) -> None:
    """Loaded unmerged on the same base; the base, loaded again, answers as before."""
    model = attach_lora(load_model(ModelSource(backbone)), LoraSettings(r=2, alpha=4))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    save_weights(model, tmp_path / "weights")
    adapted = ModelSource(backbone, tmp_path / "weights")
    base = backend.generate(requests(1), GREEDY)
    backend.load(adapted)
    answers = backend.generate(requests(1), GREEDY)
    assert answers != base
    assert [(answer.text, answer.finished) for answer in answers] == [greedy(adapted, text, 12) for text in QUESTIONS]
    backend.load(ModelSource(backbone))
    assert backend.generate(requests(1), GREEDY) == base


@pytest.mark.parametrize(("push", "finished", "num_tokens"), [(1e4, True, 1), (-1e4, False, 12)])
def test_finished_says_whether_the_end_was_sampled(
    backend: TransformersBackend, push: float, finished: bool, num_tokens: int
) -> None:
    """The end token made certain, or impossible: empty and finished at once, or cut at the limit."""
    assert backend._model is not None
    shift = torch.zeros(34).index_fill(0, torch.tensor([END]), push)
    backend._model.lm_head.register_forward_hook(lambda module, inputs, output: output + shift)  # type: ignore[operator, union-attr]
    for completion in backend.generate(requests(1), Sampling(temperature=1, top_p=1, max_tokens=12)):
        assert completion.finished is finished
        assert completion.num_tokens == num_tokens
        assert "<end>" not in completion.text
        if finished:
            assert completion.text == ""


@pytest.mark.slow
def test_end_at_the_limit_still_counts_as_finished(backend: TransformersBackend) -> None:
    """Cut one token before, the same completion is unfinished."""
    sampled = backend.generate(requests(40), Sampling(temperature=1, top_p=1, max_tokens=30))
    index, completion = next((i, one) for i, one in enumerate(sampled) if one.finished and one.num_tokens > 1)
    request = requests(40)[index]
    exact = Sampling(temperature=1, top_p=1, max_tokens=completion.num_tokens)
    assert backend.generate([request], exact) == [completion]
    (cut,) = backend.generate([request], dataclasses.replace(exact, max_tokens=completion.num_tokens - 1))
    assert (cut.text, cut.finished, cut.num_tokens) == (completion.text, False, completion.num_tokens - 1)


def test_prompts_are_counted_without_padding(backend: TransformersBackend) -> None:
    """`<user>`, a token for each character, `<assistant>`; all stand in one batch."""
    completions = backend.generate(requests(1), GREEDY)
    assert [completion.num_prompt_tokens for completion in completions] == [len(text) + 2 for text in QUESTIONS]


def test_prompt_and_completion_must_fit_the_positions(backend: TransformersBackend) -> None:
    """`<user>` + 20 letters + `<assistant>` are 22 of 96 positions, so that 74 tokens fit and 75 do not."""
    assert backend.fits(turn("a" * 20), Sampling(max_tokens=74))
    assert not backend.fits(turn("a" * 20), Sampling(max_tokens=75))


def test_nothing_asked_nothing_answered(backend: TransformersBackend) -> None:
    assert backend.generate([], GREEDY) == []


def test_closed_engine_can_be_loaded_again(backend: TransformersBackend, backbone: str) -> None:
    before = backend.generate(requests(1), GREEDY)
    backend.close()
    with pytest.raises(AssertionError, match="load a model first"):
        backend.generate(requests(1), GREEDY)
    backend.load(ModelSource(backbone))
    assert backend.generate(requests(1), GREEDY) == before


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0}])
def test_impossible_sampling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"Sampling\.{next(iter(wrong))}: expected "):
        Sampling(**wrong)  # type: ignore[arg-type]
