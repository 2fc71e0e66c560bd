"""An engine that asks an endpoint: what is sent, what becomes of the answers, what may be set, and who sees the key."""

import dataclasses
import functools
import json
import logging
import runpy
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from asking import KEY, PRICE, SAMPLING, Engine, ask, expected, kept, make_requests
from endpoint import TOKENS, FaultyEndpoint, answer_to, completion, send, status
from tiny_models import save_tiny_model

from montessori_pl.cli.fit import main
from montessori_pl.generation import EndpointError, OpenAIBackend, Price, Request, Sampling, TransformersBackend
from montessori_pl.models.loading import ModelSource
from montessori_pl.run_directory.fingerprint import pinned

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("short_waits")


class TestAnswers:
    """Completions of a willing endpoint."""

    def test_order_is_that_of_the_requests(self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path) -> None:
        """Of eight at a time, which must all be there before one is answered, the later ones are answered earlier."""
        requests = make_requests(40)
        together = threading.Barrier(8, timeout=20)

        def answer(question: str, seed: int) -> dict[str, Any]:
            together.wait()
            time.sleep(0.01 * (7 - seed % 8))
            return completion(answer_to(question, seed))

        endpoint.answer = answer
        assert engine(tmp_path, max_concurrency=8).generate(requests, SAMPLING) == expected(requests)
        assert [answer.text for answer in kept(tmp_path)] != [one.text for one in expected(requests)]
        assert endpoint.most_in_flight == 8
        assert endpoint.asked == Counter({f"question {index}": 1 for index in range(40)})

    def test_what_is_sent(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        """Everything that decides the answer; a penalty only where there is one, and the seed in 31 bits."""
        sampling = Sampling(temperature=0.6, top_p=0.8, presence_penalty=1.0, max_tokens=7)
        messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "why?"}]
        request = Request(messages=messages, seed=2**62 + 5)  # type: ignore[arg-type]
        engine().generate([request], sampling)
        engine(model="another").generate([ask("a")], Sampling(temperature=1, top_p=1))
        assert endpoint.bodies[0] == {
            "model": "a-model",
            "messages": messages,
            "temperature": 0.6,
            "top_p": 0.8,
            "presence_penalty": 1.0,
            "max_tokens": 7,
            "seed": 5,
        }
        assert endpoint.bodies[1] == {
            "model": "another",
            "messages": [{"role": "user", "content": "a"}],
            "temperature": 1.0,
            "top_p": 1.0,
            "max_tokens": 1024,
            "seed": 0,
        }
        assert endpoint.keys == {KEY}

    def test_extra_parameters_add_replace_and_leave_out(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        extra = {"top_k": 5, "temperature": 0.25, "seed": None}
        engine(extra_body=extra, limit_parameter="max_completion_tokens").generate([ask("a")], SAMPLING)
        assert endpoint.bodies == [
            {
                "model": "a-model",
                "messages": [{"role": "user", "content": "a"}],
                "temperature": 0.25,
                "top_p": 0.9,
                "max_completion_tokens": 20,
                "top_k": 5,
            }
        ]

    @pytest.mark.parametrize(
        ("text", "reason", "finished"),
        [
            ("whole", "stop", True),
            ("", "stop", True),
            ("cut", "length", False),
            (None, "length", False),
            ("cut", "content_filter", False),
            (None, "content_filter", False),
            ("whole", None, True),
            ("whole", "STOP", True),
            ("whole", "eos", True),
            ("whole", "eos_token", True),
            ("whole", "end_turn", True),
            ("whole", "stop_sequence", True),
            (None, "stop", True),
            ("cut", "model_length", False),
            ("cut", "MAX_TOKENS", False),
            ("cut", "abort", False),
            ("cut", "SAFETY", False),
            ("cut", "error", False),
            ("cut", ["stop"], False),
        ],
    )
    def test_finished_unless_it_was_cut(
        self, endpoint: FaultyEndpoint, engine: Engine, text: str | None, reason: Any, finished: bool
    ) -> None:
        """What a reason is given for may have no text at all: a model that only reasons. It is paid for, and kept."""
        endpoint.answer = lambda question, seed: completion(text, reason)
        (answer,) = engine().generate([ask("a")], SAMPLING)
        assert (answer.text, answer.finished, answer.num_tokens) == (text or "", finished, TOKENS)
        assert endpoint.asked["a"] == 1

    def test_tokenizer_s_blank_in_front_is_dropped(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path
    ) -> None:
        """One blank, from what is returned and not from what is kept; all other white space is the model's."""
        endpoint.answer = lambda question, seed: completion({"a": " d e c ", "b": "  - x", "c": "\n y"}[question])
        answers = engine(tmp_path).generate([ask("a"), ask("b"), ask("c")], SAMPLING)
        assert [answer.text for answer in answers] == ["d e c ", " - x", "\n y"]
        assert sorted(answer.text for answer in kept(tmp_path)) == ["\n y", "  - x", " d e c "]

    def test_tokens_are_estimated_where_the_server_does_not_count(
        self, endpoint: FaultyEndpoint, engine: Engine, tmp_path: Path
    ) -> None:
        """A token for each four bytes, and four for a turn: 9 bytes and é twice are 13 bytes, 4 tokens; 3 letters 1."""
        endpoint.answer = lambda question, seed: completion("été rouge 7", usage=False)
        (answer,) = engine(tmp_path, price=PRICE).generate([ask("abc")], SAMPLING)
        assert (answer.num_prompt_tokens, answer.num_tokens) == (5, 4)
        assert kept(tmp_path)[0].estimated
        spending = json.loads((tmp_path / "usage.json").read_text())
        assert spending["num_estimated"] == 1
        assert spending["dollars"] == pytest.approx((5 * 100 + 4 * 400) / 1e6)

    def test_context_length(self, engine: Engine) -> None:
        """20 letters are estimated as 5 tokens and 4 for the turn, so that 91 of 100 are left."""
        messages = ask("a" * 20).messages
        assert engine(context_length=100).fits(messages, Sampling(max_tokens=91))
        assert not engine(context_length=100).fits(messages, Sampling(max_tokens=92))
        assert engine().fits(messages, Sampling(max_tokens=10**6))

    def test_server_without_a_key(
        self, endpoint: FaultyEndpoint, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A key that lies in the environment is not sent to a server that needs none."""
        assert engine(api_key_env=None).generate([ask("a")], SAMPLING)[0].text
        monkeypatch.delenv("OPENAI_API_KEY")
        assert engine(api_key_env=None).generate([ask("b")], SAMPLING)[0].text
        assert KEY not in endpoint.keys

    def test_trained_weights_are_refused(self, engine: Engine, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"with the weights in .* is not what an endpoint answers with"):
            engine().load(ModelSource("a-model", tmp_path))

    def test_nothing_asked_nothing_sent(self, endpoint: FaultyEndpoint, engine: Engine) -> None:
        assert engine().generate([], SAMPLING) == []
        assert not endpoint.bodies


class TestSettings:
    """What may be set, and what is said of mistakes."""

    def test_pinned_is_what_changes_the_text(self) -> None:
        """The context decides how many shots a prompt shows."""
        settings = {
            "base_url": "http://localhost/v1",
            "api_key_env": None,
            "max_concurrency": 4,
            "timeout": 1.0,
            "max_retries": 1,
            "price": {"input": 1, "output": 2},
            "budget": 3.0,
        }
        deciding = {"model": "m", "context_length": 100, "limit_parameter": "max_tokens", "extra_body": {"top_k": 3}}
        engine = {"class_path": "montessori_pl.generation.OpenAIBackend", "init_args": settings | deciding}
        assert pinned(engine)["init_args"] == deciding

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"base_url": "localhost:8000/v1"}, "base_url must begin with http:// or https://, found 'localhost"),
            ({"base_url": "http://localhost:80o0/v1"}, "base_url needs a host, and behind it no port or one from 1 to"),
            ({"base_url": "http://localhost:70000/v1"}, "base_url needs a host"),
            ({"base_url": "http://[::1/v1"}, "base_url needs a host"),
            ({"base_url": "https://"}, "base_url needs a host"),
            ({"base_url": "http://my host/v1"}, "base_url needs a host"),
            ({"max_concurrency": 0}, "max_concurrency: expected int >= 1 and <= 10000, found 0"),
            ({"timeout": 0}, "timeout: expected float > 0 and <= 86400, found 0"),
            ({"max_retries": -1}, "max_retries: expected int >= 0 and <= 1000, found -1"),
            ({"budget": 5.0}, r"a budget of 5.0 dollars needs a price: set price\.input and price\.output"),
        ],
    )
    def test_mistakes(self, settings: dict[str, Any], sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            OpenAIBackend(**settings)

    def test_mistakes_in_an_address_do_not_show_its_password(self) -> None:
        with pytest.raises(ValueError, match="base_url needs a host") as error:
            OpenAIBackend(base_url="http://me:password@localhost:80o0/v1")
        assert "password" not in str(error.value)

    @pytest.mark.parametrize("address", ["http://localhost", "https://a.b:65535/v1", "http://[::1]:8000/v1"])
    def test_addresses(self, address: str) -> None:
        assert OpenAIBackend(base_url=address).base_url == address

    def test_price_below_nothing(self) -> None:
        with pytest.raises(ValueError, match=r"Price\.input: expected float >= 0, found -1"):
            Price(input=-1, output=1)

    @pytest.mark.parametrize(
        ("value", "sentence"),
        [(None, "MY_KEY is not set"), (" ", "MY_KEY is not set"), ("sk-…", "MY_KEY holds something else than a key")],
    )
    def test_missing_key(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, value: str | None, sentence: str
    ) -> None:
        if value is not None:
            monkeypatch.setenv("MY_KEY", value)
        with pytest.raises(EndpointError, match=sentence):
            engine(api_key_env="MY_KEY").generate([ask("a")], SAMPLING)

    def test_missing_client(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(EndpointError, match=r"pip install 'montessori-pl\[api\]'"):
            engine().generate([ask("a")], SAMPLING)

    def test_recipe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """All settings can be given in a recipe and are shown, without the key that the environment holds."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])  # `main` adds the working directory
        arguments = {"price": {"input": 2, "output": 8}, "budget": 5}
        generation = {"class_path": "montessori_pl.generation.OpenAIBackend", "init_args": arguments}
        Path("endpoint.yaml").write_text(yaml.safe_dump({"generation": generation}))
        with pytest.raises(SystemExit, match="0"):
            main(["fit", "--config", "self_instruct.yaml", "--config", "endpoint.yaml", "--print_config"])
        printed = capsys.readouterr().out
        shown = yaml.safe_load(printed)["generation"]["init_args"]
        assert (shown["price"], shown["budget"]) == ({"input": 2.0, "output": 8.0}, 5.0)
        assert shown["api_key_env"] == "OPENAI_API_KEY"
        assert KEY not in printed


class TestSecret:
    """The key goes to the endpoint and nowhere else."""

    @pytest.mark.parametrize("code", [401, 403, 404, 429, 500, 200])
    def test_key_is_never_repeated(
        self,
        endpoint: FaultyEndpoint,
        engine: Engine,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
        code: int,
    ) -> None:
        """Though the server repeats it: not in messages, tracebacks, logs or files, whatever the level of the logs."""
        caplog.set_level(logging.DEBUG)
        for name in ("openai", "httpx2"):
            caplog.set_level(logging.DEBUG, name)
        echo = {"error": {"message": f"who is {KEY}? {KEY}!"}, "key": KEY}
        endpoint.faults["question 3"] = [functools.partial(send, body=echo, code=code)] * 2
        backend = engine(tmp_path, max_retries=1)
        with pytest.raises(EndpointError) as error:
            backend.generate(make_requests(4), SAMPLING)
        assert endpoint.keys == {KEY}
        printed = capfd.readouterr()
        seen = [
            *traceback.format_exception(error.value),
            str(error.value.__context__),
            repr(backend),
            repr(vars(backend)),
            caplog.text,
            *printed,
            *(path.read_text() for path in tmp_path.iterdir()),
        ]
        assert caplog.text, "there was something to log"
        assert len(list(tmp_path.iterdir())) == 2
        assert KEY not in "\n".join(seen)

    def test_key_is_not_repeated_of_a_refusal(
        self, endpoint: FaultyEndpoint, engine: Engine, caplog: pytest.LogCaptureFixture
    ) -> None:
        endpoint.faults["a"] = [status(400, said=f"who is {KEY}?")]
        engine().generate([ask("a"), ask("b")], SAMPLING)
        assert "its words show the key" in caplog.text
        assert KEY not in caplog.text

    @pytest.mark.parametrize(("key", "hidden"), [("EMPTY", False), ("EMPTYKEY", True)])
    def test_what_is_shorter_than_a_key_hides_nothing(
        self, endpoint: FaultyEndpoint, engine: Engine, monkeypatch: pytest.MonkeyPatch, key: str, hidden: bool
    ) -> None:
        """Servers that need no key are often given this word."""
        monkeypatch.setenv("OPENAI_API_KEY", key)
        endpoint.faults["a"] = [status(403, said=f"an {key} prompt")]
        said = "its words show the key" if hidden else "an EMPTY prompt"
        with pytest.raises(EndpointError, match=said):
            engine().generate([ask("a")], SAMPLING)

    def test_key_in_place_of_its_name(self) -> None:
        with pytest.raises(ValueError, match="is the name of an environment variable, and not the key") as error:
            OpenAIBackend(api_key_env=KEY)
        assert KEY not in str(error.value)


class TestRealModel:
    """Endpoints that answer with a model."""

    QUESTIONS = ("a", "why is it so?", "what", "b c d", "so")

    @pytest.fixture(scope="class")
    def backbone(self, tmp_path_factory: pytest.TempPathFactory) -> str:
        return save_tiny_model(tmp_path_factory.mktemp("teacher"))

    @pytest.fixture
    def direct(self, backbone: str) -> TransformersBackend:
        """The same model without an endpoint."""
        backend = TransformersBackend(device="cpu")
        backend.load(ModelSource(backbone))
        return backend

    @pytest.mark.parametrize(
        "sampling",
        [
            Sampling(temperature=0, max_tokens=12),
            Sampling(temperature=1, top_p=1, max_tokens=12),
            Sampling(temperature=0.7, top_p=0.8, presence_penalty=1.0, max_tokens=12),
        ],
        ids=["greedy", "softmax", "nucleus with penalty"],
    )
    def test_served_model_answers_as_it_does_here(
        self, direct: TransformersBackend, engine: Engine, backbone: str, sampling: Sampling
    ) -> None:
        """The example's server honours sampling and seed, so that nothing may be lost on the way."""
        server = runpy.run_path(str(ROOT / "examples" / "serve_model.py"))["make_server"](direct, 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        requests = [ask(question, seed) for question in self.QUESTIONS for seed in (0, 2**31 - 1)]
        try:
            answers = engine(base_url=url, backbone=backbone).generate(requests, sampling)
        finally:
            server.shutdown()
            server.server_close()
        # All but the token ids, which an endpoint does not send.
        assert answers == [dataclasses.replace(one, tokens=None) for one in direct.generate(requests, sampling)]
        assert {answer.finished for answer in answers} == {True, False}

    def test_server_says_what_it_does_not_take(self, direct: TransformersBackend, engine: Engine) -> None:
        server = runpy.run_path(str(ROOT / "examples" / "serve_model.py"))["make_server"](direct, 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            with pytest.raises(EndpointError, match=r"HTTP status 400 \(Sampling\.temperature: expected float >= 0"):
                engine(base_url=url, extra_body={"temperature": -1}).generate([ask("a")], SAMPLING)
        finally:
            server.shutdown()
            server.server_close()

    @pytest.mark.slow
    def test_server_of_a_peer(self, direct: TransformersBackend, engine: Engine, backbone: str) -> None:
        """`transformers serve`, which others wrote: greedy answers, their ends and their token counts are ours."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [str(Path(sys.executable).with_name("transformers")), "serve", backbone, "--device", "cpu"]
        requests = [ask(question) for question in self.QUESTIONS]
        sampling = Sampling(temperature=0, max_tokens=12)
        with subprocess.Popen(
            [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                backend = engine(base_url=f"http://localhost:{port}/v1", backbone=backbone, timeout=60, max_retries=14)
                answers = backend.generate(requests, sampling)  # repeated until it is up
            finally:
                process.terminate()
        assert answers == direct.generate(requests, sampling)
