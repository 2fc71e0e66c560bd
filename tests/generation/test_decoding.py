"""Prompts are computed once, rows leave when they have ended, and each completion is that of plain `generate` alone."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import CONFIGS, USUAL, tiny_architecture
from tiny_models import tiny_tokenizer

from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.generation import Request, Sampling, TransformersBackend

TEXTS = ("a", "why is it so?", "b c d", "a longer question than that.")
MORE: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "Mistral (sliding)": lambda: transformers.MistralConfig(**USUAL, sliding_window=8),
    "LFM2": lambda: transformers.Lfm2Config(**{**USUAL, "layer_types": ["conv", "full_attention"]}),
    "MiniMax": lambda: transformers.MiniMaxConfig(
        **USUAL, head_dim=8, num_local_experts=2, num_experts_per_tok=1, block_size=4
    ),
    "RecurrentGemma": lambda: transformers.RecurrentGemmaConfig(
        **{**USUAL, "num_hidden_layers": 3}, head_dim=8, lru_width=16, attention_window_size=8
    ),
}
KEEP_THEIR_OWN = {"MiniMax", "RecurrentGemma"}
"""A cache of a class of its own, and a state that lies in the modules beside the cache."""


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    """The script that has the plain way, as a module."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        import transformers_engine

        yield transformers_engine
    finally:
        sys.path.pop(0)


class Counted:
    """Looks at what goes through a model: rows and tokens of each forward pass."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.shapes: list[tuple[int, int]] = []
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: torch.nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
        self.shapes.append(tuple(keywords["input_ids"].shape))


def engine_of(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[TransformersBackend, torch.nn.Module, ChatTemplate]:
    for one, make in MORE.items():
        monkeypatch.setitem(CONFIGS, one, make)
    model, chat_template = tiny_architecture(name), ChatTemplate(tiny_tokenizer())
    engine = TransformersBackend(device="cpu")
    engine.serve(model, chat_template)
    return engine, model, chat_template


def requests(samples: int = 3, stops: str = "") -> list[Request]:
    """So many of each text, which stop at a letter each, if there are some, in turn."""
    letters = itertools.cycle(stops or [""])
    return [
        Request(messages=[{"role": "user", "content": text}], seed=seed, stop=next(letters))
        for seed in range(samples)
        for text in TEXTS
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["Llama", "Gemma 2", "Gemma 3 (text)", "Mixtral", "GPT-2", "Bloom", "Mamba", *MORE],
)
def test_completions_are_those_of_plain_generate_one_by_one(
    benchmark: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, model, chat_template = engine_of(name, monkeypatch)
    plain = benchmark.PlainGeneration(model, chat_template)
    for sampling in (
        Sampling(temperature=0, max_tokens=11),
        Sampling(temperature=1.2, top_p=0.95, presence_penalty=0.5, max_tokens=11),
    ):
        asked = requests(2, "hilpx")
        completions = engine.generate(asked, sampling)
        assert completions == plain(asked, sampling)
    assert len({one.num_tokens for one in completions}) > 1, "rows end at different times"


def test_a_prompt_is_computed_once_and_ended_rows_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four prompts with twenty samples each; then, at each token, as many rows as have not ended."""
    engine, model, _ = engine_of("Llama", monkeypatch)
    engine.generate(requests(1), Sampling(max_tokens=1))
    counted = Counted(model)
    completions = engine.generate(requests(20), Sampling(top_p=1.0, max_tokens=14))
    longest = max(one.num_prompt_tokens for one in completions)
    unfinished = [sum(one.num_tokens > number for one in completions) for number in range(1, 14)]
    assert counted.shapes == [(len(TEXTS), longest), *((rows, 1) for rows in unfinished)]
    assert unfinished[-1] < unfinished[0], "some have ended"


@pytest.mark.parametrize("name", sorted(KEEP_THEIR_OWN))
def test_a_model_whose_rows_cannot_be_selected_keeps_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, model, _ = engine_of(name, monkeypatch)
    engine.generate(requests(1), Sampling(max_tokens=1))
    counted = Counted(model)
    completions = engine.generate(requests(5), Sampling(top_p=1.0, max_tokens=14))
    assert {rows for rows, _ in counted.shapes} == {5 * len(TEXTS)}
    assert min(one.num_tokens for one in completions) < len(counted.shapes), "some have ended before"


def test_nothing_is_sampled_behind_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stop ends the row at once; that the prompt holds it does not count."""
    engine, model, _ = engine_of("Llama", monkeypatch)
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=30)
    texts = [one.text for one in engine.generate(requests(), sampling)]
    counted = Counted(model)
    for text, request in zip(texts, requests(), strict=True):
        stop = text[3:5]
        if len(stop) < 2:
            continue
        messages = [{"role": "user", "content": request.messages[0]["content"]}]
        counted.shapes.clear()
        (cut,) = engine.generate([Request(messages=messages, seed=request.seed, stop=stop)], sampling)
        assert cut.text == text[: text.index(stop) + 2]
        assert len(counted.shapes) == cut.num_tokens


def test_the_name_of_a_special_token_is_no_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """`<assistant>`, which the model writes at times, is no text: only an i that is written ends the row."""
    engine, _, chat_template = engine_of("Llama", monkeypatch)
    completions = engine.generate(requests(10, "i"), Sampling(temperature=2.0, top_p=1.0, max_tokens=12))
    assert all("i" in one.text or one.finished or one.num_tokens == 12 for one in completions)
    special = chat_template.tokenizer.convert_tokens_to_ids("<assistant>")
    assert any(special in one.tokens.ids for one in completions if one.tokens is not None), "it is written"
