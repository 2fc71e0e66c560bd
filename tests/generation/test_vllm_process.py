"""The process around vLLM, with a stand-in for vLLM: what goes in and out, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_adapter, save_tiny_model

from montessori_pl.generation import Completion, EngineError, Request, Sampling, VLLMBackend
from montessori_pl.generation.vllm_process import GRACE
from montessori_pl.models.loading import LoraSettings, ModelSource

STAND_IN = Path(__file__).parent / "stand_in"
SAMPLING = Sampling(max_tokens=12)
Make = Callable[..., VLLMBackend]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With attention heads of a width that vLLM has on a CPU, too."""
    return save_tiny_model(tmp_path_factory.mktemp("teacher"), head_dim=32)


@pytest.fixture
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model with heads of 8 dimensions, where there is no GPU."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    return save_tiny_model(tmp_path / "narrow")


@pytest.fixture
def make(backbone: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Make]:
    """An engine with the stand-in, which loads the model of this name; closed when the test ends."""
    paths = (str(STAND_IN), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.syspath_prepend(STAND_IN)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made: list[VLLMBackend] = []

    def start(**settings: Any) -> VLLMBackend:
        made.append(VLLMBackend(**settings))
        made[-1].load(ModelSource(backbone))
        return made[-1]

    yield start
    for engine in made:
        engine.close()


def ask(*texts: str) -> list[Request]:
    """Requests with the seeds 0, 1, ..."""
    return [Request(messages=[{"role": "user", "content": text}], seed=seed) for seed, text in enumerate(texts)]


def answers(backend: VLLMBackend, *texts: str) -> list[str]:
    return [completion.text for completion in backend.generate(ask(*texts), SAMPLING)]


def adapter(directory: Path, rank: int) -> Path:
    """What an engine reads of an adapter before vLLM does."""
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({"r": rank}))
    return directory


def pids(backend: VLLMBackend) -> list[int]:
    return [engine.pid for engine in backend._engines]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process whose parent was killed may stay a zombie where nobody reaps orphans.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for_end(pid: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while alive(pid):
        assert time.monotonic() < end, f"process {pid} goes on"
        time.sleep(0.05)


class TestAnswers:
    def test_adapters_share_an_engine(self, make: Make, backbone: str, tmp_path: Path) -> None:
        """Each path has a number of its own; only room for larger ranks, or another model, starts another engine."""
        one, two, large = adapter(tmp_path / "one", 9), adapter(tmp_path / "two", 16), adapter(tmp_path / "large", 17)
        backend = make()
        assert pids(backend) == [], "started when it is needed"
        assert backend.generate([], SAMPLING) == []
        assert pids(backend) == []
        backend.load(ModelSource(backbone, one))
        assert answers(backend, "a", "b") == ["dbsava", "dbsbva"]
        started = pids(backend)
        for weights, expected in [(two, "dcsava"), (one, "dbsava"), (None, "dasava")]:
            backend.load(ModelSource(backbone, weights))
            assert answers(backend, "a") == [expected]
        assert pids(backend) == started
        backend.load(ModelSource(backbone, large))
        assert answers(backend, "a") == ["ddsava"]
        assert pids(backend) != started
        wait_for_end(started[0], 0)
        assert list(tmp_path.glob("vllm-*.log")) == [backend._engines[0].log], "the first one's is deleted"
        backend.close()
        assert list(tmp_path.glob("vllm-*.log")) == []

    def test_several_engines_share_the_requests(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every second request goes to GPUs 4 and 5, the others to 6 and 7; the answers come back in order."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
        backend = make(data_parallel_size=2, tensor_parallel_size=2)
        texts = [f"das{'abcde'[seed]}v{'jn'[seed % 2]}" for seed in range(5)]
        assert answers(backend, *"abcde") == texts
        assert answers(backend, "a") == texts[:1], "fewer requests than engines"
        completions = backend.generate(ask("a", "bc"), Sampling(max_tokens=3))
        assert completions == [
            Completion(text="das", finished=False, num_tokens=3, num_prompt_tokens=length) for length in (3, 4)
        ]


class TestNarrowHeads:
    """Heads of 8 dimensions, which vLLM does not have on a CPU."""

    def test_copies_are_run(self, make: Make, narrow: str, tmp_path: Path) -> None:
        """Of the model and of each adapter, on one engine; they go when it is closed."""
        backend = make()
        sources = [random_adapter(ModelSource(narrow), LoraSettings(r=r), tmp_path / f"rank {r}") for r in (2, 3)]
        started, copies = set(), []
        for source, expected in zip([*sources, sources[0]], ["dbsava", "dcsava", "dbsava"], strict=True):
            backend.check(source)
            backend.load(source)
            assert answers(backend, "a") == [expected]
            started.update(pids(backend))
            copies.append(sorted(tmp_path.glob("wide-heads-*/*/*.safetensors")))
        assert len(started) == 1
        assert [len(paths) for paths in copies] == [2, 3, 3]
        assert copies[2] == copies[1]
        backend.close()
        assert list(tmp_path.glob("wide-heads-*")) == []
        backend.load(sources[0])
        assert answers(backend, "a")

    def test_another_base(self, make: Make, narrow: str, tmp_path: Path) -> None:
        """A model all of whose weights were trained has a copy, and an engine, of its own."""
        backend = make()
        started = set()
        for weights in (None, Path(save_tiny_model(tmp_path / "tuned", seed=1))):
            backend.load(ModelSource(narrow, weights))
            assert answers(backend, "a") == ["dasava"]
            started.update(pids(backend))
        assert len(started) == 2

    def test_gpus_take_the_model_as_it_is(
        self, make: Make, narrow: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        backend = make()
        backend.load(ModelSource(narrow))
        with pytest.raises(EngineError, match=r"engine of .*/narrow ended .* no kernel for heads of 8"):
            answers(backend, "a")

    def test_what_cannot_be_padded_is_refused(self, make: Make, narrow: str, tmp_path: Path) -> None:
        """Before anything runs, and when it is loaded."""
        source = ModelSource(save_tiny_model(tmp_path / "biased", attention_bias=True))
        for refused in (make().check_environment, make().load):
            with pytest.raises(ValueError, match="have 8 and cannot be padded: its attention has biases"):
                refused(source)


class TestEnd:
    def test_crash_ends_in_one_sentence(self, make: Make, backbone: str) -> None:
        """With the last words; the log stays, and the next call starts a new engine."""
        backend = make()
        with pytest.raises(EngineError, match=r"ended by SIGABRT; its last words were: the last straw") as error:
            backend.generate(ask("a", "crash"), SAMPLING)
        log = Path(str(error.value).rpartition("(all of them: ")[2].rstrip(")"))
        assert "what an engine prints is no answer" in log.read_text()
        assert backbone in str(error.value)
        assert answers(backend, "a") == ["dasava"]

    def test_engine_that_does_not_start(self, make: Make) -> None:
        backend = make(engine_args={"unbearable": True})
        with pytest.raises(EngineError, match=r"exit code 1; its last words were: ValueError: two lines of complaint"):
            backend.generate(ask("a"), SAMPLING)

    def test_close_ends_the_process(self, make: Make, backbone: str) -> None:
        backend = make()
        answers(backend, "a")
        (pid,) = pids(backend)
        started = time.monotonic()
        backend.close()
        assert time.monotonic() - started < GRACE, "an engine without work ends at once"
        assert not alive(pid)
        with pytest.raises(AssertionError, match="load a model first"):
            answers(backend, "a")
        backend.load(ModelSource(backbone))
        assert answers(backend, "a") == ["dasava"]

    @pytest.mark.slow
    @pytest.mark.parametrize("asked", ["a", "sleep"], ids=["waiting", "at work"])
    def test_parent_is_killed(self, make: Make, backbone: str, asked: str) -> None:
        """`kill -9` of the parent ends the engine, whatever it is doing."""
        code = (
            "import sys\n"
            "from montessori_pl.generation import Request, Sampling, VLLMBackend\n"
            "from montessori_pl.models.loading import ModelSource\n"
            "backend = VLLMBackend()\n"
            "backend.load(ModelSource(sys.argv[1]))\n"
            "def ask(text):\n"
            "    turn = {'role': 'user', 'content': text}\n"
            "    backend.generate([Request(messages=[turn], seed=0)], Sampling(max_tokens=2))\n"
            "ask('a')\n"
            "print(backend._engines[0].pid, flush=True)\n"
            "ask(sys.argv[2])\n"
            "input()\n"
        )
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-c", code, backbone, asked], stdin=pipe, stdout=pipe) as parent:
            assert parent.stdout is not None
            engine = int(parent.stdout.readline())
            assert alive(engine)
            time.sleep(0.5)
            parent.send_signal(signal.SIGKILL)
            parent.wait()
        wait_for_end(engine, 2 * GRACE)


class TestCheck:
    def test_vllm_is_not_installed(self, backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ValueError, match=r"VLLMBackend needs vLLM: pip install 'montessori-pl\[vllm\]'"):
            VLLMBackend().check_environment(ModelSource(backbone))

    def test_what_is_not_there(self, make: Make, backbone: str, tmp_path: Path) -> None:
        """Of 96 positions, and of adapters of rank 8 and 1024."""
        make().check(ModelSource(backbone, adapter(tmp_path / "small", 8)))
        with pytest.raises(ValueError, match="no adapter or trained model in"):
            make().check(ModelSource(backbone, tmp_path / "absent"))
        with pytest.raises(ValueError, match="no tokenizer for the backbone"):
            make().check(ModelSource(str(tmp_path / "absent")))
        with pytest.raises(ValueError, match="has 96 positions, found max_model_len 97"):
            make(max_model_len=97).check(ModelSource(backbone))
        with pytest.raises(ValueError, match=r"has rank 1024, the largest that is allowed is 512"):
            make().check(ModelSource(backbone, adapter(tmp_path / "large", 1024)))
        with pytest.raises(ValueError, match=r"has rank 8, the largest that is allowed is 1$"):
            make(max_lora_rank=1).check(ModelSource(backbone, tmp_path / "small"))

    def test_too_few_gpus(self, make: Make, backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
        backend = make(data_parallel_size=2, tensor_parallel_size=2)
        with pytest.raises(ValueError, match=r"2 engines .* on 2 GPUs each .* need 4 GPUs, found 3"):
            backend.check_environment(ModelSource(backbone))

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"tensor_parallel_size": 0}, "tensor_parallel_size: expected int >= 1, found 0"),
            ({"gpu_memory_utilization": 1.1}, r"gpu_memory_utilization: expected float > 0 and <= 1, found 1\.1"),
            ({"max_lora_rank": 10}, "max_lora_rank: expected int, one of 1, 8, 16, .*, found 10"),
            ({"engine_args": {"seed": 1, "model": "m"}}, r"engine_args must not hold model:"),
        ],
    )
    def test_impossible_settings(self, settings: dict[str, Any], sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            VLLMBackend(**settings)

    def test_prompt_and_completion_must_fit(self, make: Make) -> None:
        """`<user>` + 20 letters + `<assistant>` are 22 tokens, of 96 positions or of 50."""
        messages = ask("a" * 20)[0].messages
        for backend, room in ((make(), 74), (make(max_model_len=50), 28)):
            assert backend.fits(messages, Sampling(max_tokens=room))
            assert not backend.fits(messages, Sampling(max_tokens=room + 1))


@pytest.mark.parametrize(
    ("environment", "bound"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "3"}, "nobind"),
        ({"OMP_NUM_THREADS": "3", "VLLM_CPU_OMP_THREADS_BIND": "0-2"}, "0-2"),
    ],
    ids=["no number", "number", "bound by the user"],
)
def test_a_number_of_threads_reaches_the_engine(
    make: Make, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], bound: str | None
) -> None:
    """Where vLLM binds threads to cores, it has as many as there are cores."""
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    backend = make()
    answers(backend, "a")
    lines = Path(f"/proc/{pids(backend)[0]}/environ").read_text().split("\0")
    found = dict(line.split("=", 1) for line in lines if line)
    assert found.get("VLLM_CPU_OMP_THREADS_BIND") == bound
    assert found.get("OMP_NUM_THREADS") == environment.get("OMP_NUM_THREADS")
