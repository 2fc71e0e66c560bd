"""What tests ask an endpoint, what it answers, and what is kept of that."""

from collections.abc import Callable
from pathlib import Path

from endpoint import PROMPT_TOKENS, TOKENS, answer_to

from montessori_pl.data.records import read_records
from montessori_pl.generation import Completion, OpenAIBackend, Price, Request, Sampling
from montessori_pl.generation.request_journal import ANSWERS, Answer

KEY = "sk-secret-0123456789"
SAMPLING = Sampling(max_tokens=20)
PRICE = Price(input=100, output=400)
DOLLARS = 0.003
"""Of one answer: 10 prompt tokens at 100 and 5 sampled tokens at 400 dollars for a million."""

Engine = Callable[..., OpenAIBackend]
"""Makes an engine that asks the endpoint: directory of its answers, model and settings."""


def ask(question: str, seed: int = 0) -> Request:
    return Request(messages=[{"role": "user", "content": question}], seed=seed)


def make_requests(number: int) -> list[Request]:
    return [ask(f"question {index}", seed=index) for index in range(number)]


def expected(requests: list[Request]) -> list[Completion]:
    """What the endpoint answers to these."""
    return [
        Completion(
            text=answer_to(request.messages[-1]["content"], request.seed),
            finished=True,
            num_tokens=TOKENS,
            num_prompt_tokens=PROMPT_TOKENS,
        )
        for request in requests
    ]


def kept(directory: Path) -> list[Answer]:
    return read_records(directory / ANSWERS, Answer)
