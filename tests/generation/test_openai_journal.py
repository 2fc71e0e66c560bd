"""What was paid for is never lost and never paid for twice; and the budget is kept."""

import dataclasses
import itertools
import json
import multiprocessing
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from asking import DOLLARS, PRICE, SAMPLING, Engine, ask, expected, kept, make_requests
from endpoint import FaultyEndpoint, answer_to, completion, content

from montessori_pl.generation import EndpointError, OpenAIBackend, Price, request_journal
from montessori_pl.generation.request_journal import ANSWERS, Answer, RequestJournal, request_id
from montessori_pl.models.loading import ModelSource

pytestmark = pytest.mark.usefixtures("short_waits")


class TestJournal:
    """An answer that arrived is never asked for again."""

    def test_later_sessions_ask_only_for_what_is_missing(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path
    ) -> None:
        requests = make_requests(20)
        engine(tmp_path).generate(requests[5:15], SAMPLING)
        assert engine(tmp_path).generate(requests, SAMPLING) == expected(requests)
        assert engine(tmp_path).generate(requests[::-1], SAMPLING) == expected(requests)[::-1]
        assert set(endpoint.asked.values()) == {1}

    def test_same_request_twice_is_asked_once(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        """The same seed draws the same completion; without `keep`, this holds for the engine's life."""
        backend = engine()
        assert backend.generate([ask("a"), ask("b"), ask("a")], SAMPLING) == expected([ask("a"), ask("b"), ask("a")])
        backend.generate([ask("a")], SAMPLING)
        assert endpoint.asked == {"a": 1, "b": 1}

    @pytest.mark.parametrize(
        "changed",
        [
            {"max_concurrency": 3},
            {"timeout": 9.0},
            {"max_retries": 0},
            {"price": PRICE},
            {"price": PRICE, "budget": 1.0},
            {"context_length": 5000},
            {"api_key_env": None},
            {"base_url": "http://localhost:1/v1"},
            {"model": "a-model"},
            {"extra_body": {}},
        ],
        ids=str,
    )
    def test_what_does_not_decide_the_answer(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, changed: dict[str, Any]
    ) -> None:
        """Also another address: the same server on another port, or another provider of the same model."""
        requests = make_requests(3)
        engine(tmp_path).generate(requests, SAMPLING)
        assert engine(tmp_path, **changed).generate(requests, SAMPLING) == expected(requests)
        assert set(endpoint.asked.values()) == {1}

    @pytest.mark.parametrize(
        ("settings", "sampling", "seed"),
        [
            ({"model": "another"}, {}, 1),
            ({"backbone": "another"}, {}, 1),
            ({"extra_body": {"top_k": 3}}, {}, 1),
            ({"limit_parameter": "max_completion_tokens"}, {}, 1),
            ({}, {"temperature": 0.5}, 1),
            ({}, {"top_p": 0.5}, 1),
            ({}, {"presence_penalty": 0.5}, 1),
            ({}, {"max_tokens": 21}, 1),
            ({}, {}, 2),
        ],
        ids=str,
    )
    def test_what_decides_the_answer(
        self,
        endpoint: FaultyEndpoint,
        engine: Engine,
        tmp_path: Path,
        settings: dict[str, Any],
        sampling: dict[str, Any],
        seed: int,
    ) -> None:
        engine(tmp_path).generate([ask("a", 1)], SAMPLING)
        engine(tmp_path, **settings).generate([ask("a", seed)], dataclasses.replace(SAMPLING, **sampling))
        assert endpoint.asked["a"] == 2

    @pytest.mark.parametrize("seed", [None, 42])
    def test_samples_stay_apart_without_a_seed_of_their_own(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, seed: int | None
    ) -> None:
        """Three samples of one prompt are three requests, also for a later session."""
        numbers = itertools.count()
        endpoint.answer = lambda question, seed: completion(f"sample {next(numbers)}")
        requests = [ask("a", number) for number in (1, 2, 42)]
        answers = engine(tmp_path, extra_body={"seed": seed}).generate(requests, SAMPLING)
        assert len({answer.text for answer in answers}) == 3
        assert engine(tmp_path, extra_body={"seed": seed}).generate(requests, SAMPLING) == answers
        assert endpoint.asked["a"] == 3

    def test_names_are_those_of_earlier_versions(self, engine: Engine, tmp_path: Path) -> None:
        """The hash of the body alone, so that what an earlier version has paid for is found."""
        engine(tmp_path).generate([ask("a", 2**31 + 5)], SAMPLING)
        body = {
            "model": "a-model",
            "messages": [{"role": "user", "content": "a"}],
            "temperature": 1.0,
            "top_p": 0.9,
            "max_tokens": 20,
            "seed": 5,
        }
        assert [answer.id for answer in kept(tmp_path)] == [request_id(body)]

    @pytest.mark.slow
    def test_journal_may_end_anywhere(self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path) -> None:
        """Cut here and there, as a kill may leave it: whole lines are served, the rest is asked for again."""
        requests = make_requests(4)
        endpoint.answer = lambda question, seed: completion(f"naïve {question} with {seed}")
        answers = engine(tmp_path / "whole").generate(requests, SAMPLING)
        data = (tmp_path / "whole" / ANSWERS).read_bytes()
        for size in [*range(0, len(data), 47), len(data)]:
            directory = tmp_path / str(size)
            directory.mkdir()
            (directory / ANSWERS).write_bytes(data[:size])
            before = len(endpoint.bodies)
            assert engine(directory).generate(requests, SAMPLING) == answers
            assert len(endpoint.bodies) - before == 4 - data[:size].count(b"\n")
            assert sorted((directory / ANSWERS).read_bytes().splitlines()) == sorted(data.splitlines())

    def test_full_disk_leaves_no_half_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Other threads go on to write behind it."""
        journal = RequestJournal(tmp_path)
        answers = [
            Answer(id=str(number), text="t", finished=True, num_tokens=1, num_prompt_tokens=1) for number in range(3)
        ]
        journal.add(answers[0])

        def half(path: Path, records: list[Answer]) -> None:
            with open(path, "a") as file:
                file.write(records[0].to_json()[:10])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(request_journal, "append_records", half)
            with pytest.raises(OSError, match="No space left"):
                journal.add(answers[1])
        journal.add(answers[2])
        assert list(RequestJournal(tmp_path).answers) == ["0", "2"]

    def test_something_else_is_not_read_as_answers(self, engine: Engine, tmp_path: Path) -> None:
        (tmp_path / ANSWERS).write_text('{"id": "a", "text": "b"}\n')
        with pytest.raises(ValueError, match="not a Answer record"):
            engine(tmp_path)


def _generate_in_a_process(base_url: str, directory: Path, number: int) -> None:
    # Without a key: the server of this process may have been forked before a test has put one into the environment.
    backend = OpenAIBackend(base_url=base_url, api_key_env=None, max_concurrency=8)
    backend.set_cache_dir(directory)
    backend.load(ModelSource("a-model"))
    backend.generate(make_requests(number), SAMPLING)


@pytest.mark.slow
def test_kill_in_the_middle(endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path) -> None:
    """`kill -9` at the 200th of 500 answers: what had arrived is not asked for again, and 8 at most are asked twice."""
    requests = make_requests(500)
    # Forked from a process without threads; this one has the endpoint's.
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_generate_in_a_process, args=(endpoint.base_url, tmp_path, 500))
    endpoint.seconds = 0.002
    endpoint.after_answer = lambda number: process.kill() if number == 200 else None
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    time.sleep(0.1)  # for what is still on its way to a client that has gone

    before = endpoint.asked.copy()
    arrived = {answer.text: answer for answer in RequestJournal(tmp_path).answers.values()}
    assert 192 <= len(arrived) <= 200
    lines = (tmp_path / ANSWERS).read_bytes()
    (tmp_path / ANSWERS).write_bytes(lines[: lines.rindex(b"\n") + 1] + lines[:50])  # a torn line

    assert engine(tmp_path, max_concurrency=16, price=PRICE).generate(requests, SAMPLING) == expected(requests)
    asked = endpoint.asked
    assert sum(asked.values()) - 500 == sum(before.values()) - len(arrived) <= 8, "what was in flight is asked twice"
    for request in requests:
        question = request.messages[-1]["content"]
        times = 1 + (question in before and answer_to(question, request.seed) not in arrived)
        assert asked[question] == times, question
    assert {answer.id for answer in arrived.values()} < RequestJournal(tmp_path).answers.keys()


class TestMoney:
    """Tokens, dollars and the budget."""

    @pytest.mark.parametrize("max_concurrency", [1, 4])
    def test_budget_is_exceeded_by_what_is_in_flight_at_most(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path, max_concurrency: int
    ) -> None:
        """$0.02 buy six answers at $0.003, and the seventh; everything is kept, and more money goes on from there."""
        requests = make_requests(30)
        endpoint.seconds = 0.02
        with pytest.raises(
            EndpointError, match=r"and the budget is \$0\.0200; raise the setting budget to go on"
        ) as error:
            engine(tmp_path, price=PRICE, budget=0.02, max_concurrency=max_concurrency).generate(requests, SAMPLING)
        spent = endpoint.answered.total() * DOLLARS
        assert 0.02 <= spent < 0.02 + max_concurrency * DOLLARS
        assert len(kept(tmp_path)) == endpoint.answered.total() == len(endpoint.bodies)
        assert f"{len(kept(tmp_path))} answers are kept in" in str(error.value)
        spending = json.loads((tmp_path / "usage.json").read_text())
        assert spending["dollars"] == pytest.approx(spent)
        assert spending["budget"] == 0.02

        before = len(endpoint.bodies)
        again = engine(tmp_path, price=PRICE, budget=0.02)
        with pytest.raises(EndpointError, match=rf"have cost \${spent:.4f}, and the budget is \$0.0200"):
            again.generate(requests, SAMPLING)
        assert len(endpoint.bodies) == before, "nothing is sent"
        first = expected(requests)[:5]
        assert again.generate(requests[:5], SAMPLING) == first, "what is there costs nothing"

        assert engine(tmp_path, price=PRICE, budget=1.0).generate(requests, SAMPLING) == expected(requests)
        assert set(endpoint.asked.values()) == {1}

    def test_no_attempt_is_repeated_when_the_budget_is_spent(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path
    ) -> None:
        """Each attempt is billed, though there is no text in what comes back; the fourth would be beyond $0.009."""
        endpoint.faults["a"] = [content(completion(None, finish_reason="error"))] * 10
        with pytest.raises(EndpointError, match=r"have cost \$0\.0090"):
            engine(tmp_path, price=PRICE, budget=0.009, max_retries=9).generate([ask("a")], SAMPLING)
        assert endpoint.asked["a"] == 3

    def test_each_answer_has_the_price_of_who_was_asked(self, engine: Engine, tmp_path: Path) -> None:
        """Two models that share a directory, as judges do: the cheap one's answers do not spend the other's budget."""
        requests = make_requests(10)
        cheap = engine(tmp_path, backbone="cheap", price=Price(input=1, output=4))
        cheap.generate(requests, SAMPLING)
        assert cheap.dollars == pytest.approx(10 * DOLLARS / 100)
        dear = engine(tmp_path, backbone="dear", price=PRICE, budget=0.01)
        dear.generate(requests[:3], SAMPLING)
        both = 10 * DOLLARS / 100 + 3 * DOLLARS
        assert dear.dollars == pytest.approx(both)
        assert dear.budget_left(tmp_path) == pytest.approx(0.01 - both)
        assert json.loads((tmp_path / "usage.json").read_text())["dollars"] == pytest.approx(both)
        assert engine(tmp_path, backbone="cheap", price=Price(input=1, output=4)).dollars == pytest.approx(both)
        assert engine(tmp_path).dollars is None

    def test_answers_of_who_has_no_price_cost_others_nothing(self, engine: Engine, tmp_path: Path) -> None:
        """A model of one's own beside a paid one; when it gets a price, its earlier answers count by it."""
        engine(tmp_path, backbone="mine").generate(make_requests(10), SAMPLING)
        dear = engine(tmp_path, backbone="dear", price=PRICE)
        dear.generate(make_requests(1), SAMPLING)
        assert dear.dollars == pytest.approx(DOLLARS)
        assert engine(tmp_path, backbone="mine", price=PRICE).dollars == pytest.approx(11 * DOLLARS)

    def test_answers_of_earlier_versions_count_by_the_price_that_is_set(self, engine: Engine, tmp_path: Path) -> None:
        """Their lines name neither who was asked nor a cost."""
        line = '{"id": "a", "text": "b", "finished": true, "num_tokens": 5, "num_prompt_tokens": 10}\n'
        (tmp_path / ANSWERS).write_text(line)
        assert engine(tmp_path, price=PRICE).dollars == pytest.approx(DOLLARS)

    @pytest.mark.parametrize(
        "price", ['{"input": -1, "output": 1}', '{"input": 1}', "3", '{"input": 1, "output": NaN}']
    )
    def test_kept_prices_that_cannot_be_are_refused(self, tmp_path: Path, price: str) -> None:
        line = '{"id": "a", "text": "", "finished": true, "num_tokens": 1, "num_prompt_tokens": 1, "price": '
        (tmp_path / ANSWERS).write_text(f"{line}{price}}}\n")
        with pytest.raises(ValueError, match="holds something else than answers"):
            RequestJournal(tmp_path)

    def test_cost(self) -> None:
        """Two million prompt tokens at $3 and half a million sampled ones at $8."""
        assert Price(input=3, output=8).cost(2_000_000, 500_000) == 10
