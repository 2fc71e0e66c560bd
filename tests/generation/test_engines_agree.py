"""Engines are interchangeable: without chance, each writes the same examples; one line of the recipe names it."""

import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from montessori_pl import classroom
from montessori_pl.classroom.tasks import FAMILIES, sample_task
from montessori_pl.cli.fit import main
from montessori_pl.data.records import Example, read_records
from montessori_pl.generation import OpenAIBackend, Request, Sampling, TransformersBackend
from montessori_pl.generation.head_padding import PaddedCopies
from montessori_pl.models.loading import ModelSource

ROOT = Path(__file__).parents[2]
TEACHER = "classroom/teacher"


@pytest.fixture
def url() -> Iterator[str]:
    """Where the classroom's teacher is served."""
    backend = TransformersBackend(device="cpu")
    backend.load(ModelSource(TEACHER))
    server = runpy.run_path(str(ROOT / "examples" / "serve_model.py"))["make_server"](backend, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def written(tiny_recipe: Callable[..., Path], engine: str, **settings: Any) -> list[Example]:
    """What a teacher of the pool, with this engine, writes without chance."""
    greedy = {"temperature": 0.0, "top_p": 1.0}
    path = tiny_recipe(
        "self_instruct_api.yaml",
        training_data={
            "num_examples": 20,
            "samples_per_prompt": 1,
            "max_similarity": None,
            "instruction_sampling": {**greedy, "max_tokens": 40},
            "response_sampling": {**greedy, "max_tokens": 24},
        },
        config={
            "teachers.strong.generation": {
                "class_path": f"montessori_pl.generation.{engine}",
                "init_args": settings,
            }
        },
    )
    config = yaml.safe_load(path.read_text())
    config["recipe"] = {"training_data": config["recipe"]["training_data"]}
    path.write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(path)])
    return read_records(path.parent / "run" / "iteration_1" / "training_data" / "examples.jsonl", Example)


@pytest.fixture
def vllm_server(small_engine: None, tmp_path: Path) -> Iterator[str]:
    """Where vLLM's own server serves the classroom's teacher, with heads that it can run on a CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    copies = PaddedCopies()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)),
        *("--model", copies.runnable(ModelSource(TEACHER)).backbone, "--tokenizer", classroom.resolve(TEACHER)),
        *("--served-model-name", TEACHER, "--dtype", "float32", "--generation-config", "vllm"),
        *("--enforce-eager", "--no-enable-chunked-prefill"),
    ]
    log = tmp_path / "vllm.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
        process.wait()
        copies.close()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 240
    while True:
        with suppress(urllib.error.URLError), urllib.request.urlopen(url):
            return
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.2)


@pytest.mark.slow
def test_endpoint_writes_what_transformers_writes(tiny_recipe: Callable[..., Path], url: str) -> None:
    direct = written(tiny_recipe, "TransformersBackend")
    assert len({one.instruction for one in direct}) == 20
    assert written(tiny_recipe, "OpenAIBackend", base_url=url, api_key_env=None) == direct


@pytest.mark.vllm
@pytest.mark.usefixtures("small_engine")
def test_vllm_writes_what_transformers_writes(tiny_recipe: Callable[..., Path]) -> None:
    direct = written(tiny_recipe, "TransformersBackend")
    assert written(tiny_recipe, "VLLMBackend", enforce_eager=True) == direct


@pytest.mark.vllm
def test_server_of_vllm(tiny_recipe: Callable[..., Path], vllm_server: str) -> None:
    """Its answers, their ends and their token counts are ours, though its decoding keeps a blank in front of them."""
    direct, served = TransformersBackend(device="cpu"), OpenAIBackend(vllm_server, api_key_env=None)
    rng = random.Random(3)
    texts = [sample_task(rng, rng.choice(FAMILIES))[0] for _ in range(40)]
    requests = [
        Request(messages=[{"role": "user", "content": text if seed % 3 else " ".join(text.split()[:2])}], seed=seed)
        for seed, text in enumerate(texts)
    ]
    sampling = Sampling(temperature=0, max_tokens=6)
    for backend in (direct, served):
        backend.load(ModelSource(TEACHER))
    answers = served.generate(requests, sampling)
    served.close()
    assert answers == direct.generate(requests, sampling)
    assert {answer.finished for answer in answers} == {True, False}
    theirs = written(tiny_recipe, "OpenAIBackend", base_url=vllm_server, api_key_env=None)
    assert theirs == written(tiny_recipe, "TransformersBackend")
