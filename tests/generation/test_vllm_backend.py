"""vLLM answers as Transformers does: the same tokens, the same log-probabilities, the same adapters."""

import dataclasses
import importlib.util
import json
import math
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import random_adapter
from torch import Tensor

from montessori_pl import classroom
from montessori_pl.batches.collate import collate
from montessori_pl.classroom.tasks import FAMILIES, sample_task
from montessori_pl.cli.fit import main
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.records import Message, read_lines, teacher_messages
from montessori_pl.generation import Completion, EngineError, Request, Sampling, TransformersBackend, VLLMBackend
from montessori_pl.generation.head_padding import CPU_HEAD_DIMS
from montessori_pl.losses import sequence_log_probabilities
from montessori_pl.models.loading import LoraSettings, ModelSource, load_chat_template, load_model, save_weights
from montessori_pl.synthesis.prompts import TEMPLATES, fill
from montessori_pl.worlds.gym.sets import draw_sets

GREEDY = Sampling(temperature=0, max_tokens=48)
SAMPLED = Sampling(temperature=1, top_p=0.9, presence_penalty=1, max_tokens=48)
NUMBER = 300
SMOLLM2 = Path(__file__).parents[2] / "checkpoints" / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TEACHER, STUDENT = ModelSource("classroom/teacher"), ModelSource("classroom/student")


pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("small_engine")]


@pytest.fixture(scope="module")
def engine() -> Iterator[VLLMBackend]:
    """One for all tests: to start it takes ten seconds and more."""
    backend = VLLMBackend(enforce_eager=True)
    yield backend
    backend.close()


@pytest.fixture
def peer() -> TransformersBackend:
    return TransformersBackend(device="cpu")


def turn(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def tasks(number: int = NUMBER) -> list[Request]:
    """Tasks of the classroom, and some that are cut short, to which the models have no ready answer."""
    rng = random.Random(7)
    texts = [sample_task(rng, rng.choice(FAMILIES))[0] for _ in range(number)]
    return [
        Request(messages=turn(text if seed % 3 else " ".join(text.split()[:2])), seed=seed)
        for seed, text in enumerate(texts)
    ]


def pids(backend: VLLMBackend) -> list[int]:
    return [process.pid for process in backend._engines]


class TestAgainstTransformers:
    def test_kernels_have_these_heads(self) -> None:
        """By the source: to import vLLM takes ten seconds and more."""
        spec = importlib.util.find_spec("vllm")
        assert spec is not None
        assert spec.origin is not None
        kernels = Path(spec.origin).parent / "v1" / "attention" / "backends" / "cpu_attn.py"
        match = re.search(r"def get_supported_head_sizes.*\n\s+return \[(.*)\]", kernels.read_text())
        assert match is not None
        assert tuple(map(int, match[1].split(","))) == CPU_HEAD_DIMS

    def test_greedy_completions(self, engine: VLLMBackend, peer: TransformersBackend, tmp_path: Path) -> None:
        """Token for token, with and without adapters and penalty, on one engine as long as the base stays."""
        requests = tasks()
        letters = dataclasses.replace(TEACHER, weights=Path(classroom.resolve("classroom/specialist_letters")))
        some_layers = random_adapter(TEACHER, LoraSettings(r=3, alpha=6, layers=[1]), tmp_path / "weights")
        seen: list[list[Completion]] = []
        processes = set()
        for source in [letters, TEACHER, some_layers, letters]:
            peer.load(source)
            engine.check(source)
            engine.load(source)
            for sampling in (GREEDY, dataclasses.replace(GREEDY, presence_penalty=1, max_tokens=5)):
                seen.append(engine.generate(requests, sampling))
                assert seen[-1] == peer.generate(requests, sampling)
            processes.update(pids(engine))
        assert len(processes) == 1
        assert seen[-2:] == seen[:2], "the adapter is told from the other one"
        for first, second in ((0, 1), (0, 2), (2, 4)):
            assert sum(map(Completion.__ne__, seen[first], seen[second])) > 20
        assert {completion.finished for completion in seen[1]} == {True, False}

    def test_open_turns_and_stops(self, engine: VLLMBackend, peer: TransformersBackend) -> None:
        """A prefilled answer, an empty user turn and a text, beside each other; both engines end them alike."""
        asked = [turn("Write a new task .\n<instruction>reverse a b</instruction>")]
        asked += [teacher_messages("copy a b", prefill="a"), [], teacher_messages("copy a", "text")]
        requests = [
            Request(messages=messages, seed=seed, stop=stop)
            for seed, messages in enumerate(asked)
            for stop in ("", "</instruction>", "b")
        ]
        for one in (peer, engine):
            one.load(TEACHER)
        completions = engine.generate(requests, GREEDY)
        assert completions == peer.generate(requests, GREEDY)
        assert any(one.text.endswith("</instruction>") and not one.finished for one in completions)

    def test_log_probabilities(self, tmp_path: Path) -> None:
        """Of completions under an adapter: those that vLLM reports while it samples, and ours, read afterwards."""
        source = random_adapter(TEACHER, LoraSettings(r=4), tmp_path / "weights")
        chat_template = load_chat_template(source)
        prompts = [chat_template.prompt_ids(request.messages) for request in tasks(60)]
        completions, theirs = sampled_log_probabilities(source, prompts)
        batch = collate(
            [
                Rendered(prompt + ids, [False] * len(prompt) + [True] * len(ids))
                for prompt, ids in zip(prompts, completions, strict=True)
            ],
            chat_template.tokenizer.pad_token_id,
        )
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            ours, unadapted = (
                sequence_log_probabilities(load_model(model)(**inputs).logits, batch["labels"])
                for model in (source, TEACHER)
            )
        assert torch.allclose(ours, theirs, atol=1e-3)
        assert (ours - unadapted).abs().mean() > 1, "the adapter matters"


@pytest.mark.skipif(
    not (SMOLLM2.exists() and importlib.util.find_spec("gguf")),
    reason="needs SmolLM2, which `make real` fetches, and gguf",
)
def test_a_real_model_from_its_gguf_file(peer: TransformersBackend, tmp_path: Path) -> None:
    """Greedy, token for token, with and without an adapter: 25 tasks of the gym and 25 requests for a new one."""
    tasks = [one.instruction for one in draw_sets("normal", 0)["seed_tasks"]]
    texts = [*tasks[:25], *(fill(TEMPLATES["new_task"], "\n\n".join(tasks[at : at + 6])) for at in range(25))]
    requests = [Request(messages=turn(text), seed=0) for text in texts]
    plain = ModelSource(str(SMOLLM2))
    adapted = random_adapter(plain, LoraSettings(r=8, alpha=1), tmp_path / "weights")
    engine = VLLMBackend(enforce_eager=True)
    seen = []
    for source in (plain, adapted):
        engine.check(source)
        for one in (engine, peer):
            one.load(source)
        seen.append(engine.generate(requests, GREEDY))
        assert seen[-1] == peer.generate(requests, GREEDY)
    engine.close()
    assert sum(map(Completion.__ne__, *seen)) > 10, "the adapter matters"


class TestSampling:
    def test_same_call_same_completions(self, engine: VLLMBackend) -> None:
        """Whatever was asked before; and in float32 on a CPU nearly always also beside other requests."""
        requests = tasks()
        engine.load(TEACHER)
        first = engine.generate(requests, SAMPLED)
        backwards = engine.generate(requests[::-1], SAMPLED)[::-1]
        some = engine.generate(requests[50:90], SAMPLED)
        assert engine.generate(requests, SAMPLED) == first
        assert sum(map(Completion.__eq__, backwards, first)) >= 0.99 * NUMBER
        assert sum(map(Completion.__eq__, some, first[50:90])) >= 39
        others = engine.generate([dataclasses.replace(one, seed=one.seed + NUMBER) for one in requests], SAMPLED)
        assert sum(map(Completion.__ne__, others, first)) > 20, "other seeds, other completions"

    @pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 0.7)])
    def test_samples_follow_the_softmax(self, engine: VLLMBackend, temperature: float, top_p: float) -> None:
        """2,000 first tokens against their probabilities by Pearson's chi-square: k - 1, spread sqrt(2 (k - 1))."""
        number = 2000
        engine.load(TEACHER)
        requests = [Request(messages=turn("tell me"), seed=seed) for seed in range(number)]
        found = Counter(
            (one.text, one.finished)
            for one in engine.generate(requests, Sampling(temperature=temperature, top_p=top_p, max_tokens=1))
        )
        expected = first_token(TEACHER, "tell me", temperature, top_p)
        assert found.keys() <= expected.keys()
        likely = {outcome: number * share for outcome, share in expected.items() if number * share >= 5}
        freedom = len(likely) - 1
        assert freedom >= 2
        chi_square = sum((found[outcome] - mean) ** 2 / mean for outcome, mean in likely.items())
        assert chi_square < freedom + 4 * math.sqrt(2 * freedom)

    def test_completion_to_the_last_position(self, engine: VLLMBackend, peer: TransformersBackend) -> None:
        """What `fits` allows, vLLM does: here prompt and completion fill all positions but one, and all."""
        chat_template = load_chat_template(TEACHER)
        text = " ".join(str(request.messages[0]["content"]) for request in tasks(90))
        room = 512 - len(chat_template.prompt_ids(turn(text)))
        assert 1 < room < 200
        engine.load(TEACHER)
        peer.load(TEACHER)
        # A penalty on tokens that came already, among them no end: nothing else would go on for so long.
        for max_tokens in (room - 1, room):
            sampling = Sampling(temperature=0, presence_penalty=-2, max_tokens=max_tokens)
            assert engine.fits(turn(text), sampling)
            request = [Request(messages=turn(text), seed=0)]
            assert engine.generate(request, sampling) == peer.generate(request, sampling)
        assert not engine.fits(turn(text), Sampling(max_tokens=room + 1))

    def test_more_prompts_than_fit_a_step(self, engine: VLLMBackend) -> None:
        """24,000 tokens of prompts, several times what vLLM takes up at once, in one order and in the other."""
        text = " ".join(str(request.messages[0]["content"]) for request in tasks(60))
        assert len(load_chat_template(TEACHER).prompt_ids(turn(text))) > 240
        requests = [
            Request(messages=turn(f"{request.messages[0]['content']} {text}"), seed=seed)
            for seed, request in enumerate(tasks(100))
        ]
        engine.load(TEACHER)
        first = engine.generate(requests, SAMPLED)
        assert sum(map(Completion.__eq__, engine.generate(requests[::-1], SAMPLED)[::-1], first)) >= 97
        assert len({one.text for one in first}) > 20

    def test_what_vllm_refuses_ends_in_its_words(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # its log is kept
        backend = VLLMBackend(engine_args={"quantization": "wishful"})
        backend.load(TEACHER)
        with pytest.raises(EngineError, match=r"exit code 1; its last words were: \w*Error: .*wishful"):
            backend.generate(tasks(1), GREEDY)
        backend.close()


class TestOtherBases:
    """Last in this file: the engine that the tests share starts again."""

    def test_student_on_two_engines(self, peer: TransformersBackend) -> None:
        """They share the requests."""
        engine = VLLMBackend(enforce_eager=True, data_parallel_size=2)
        try:
            for backend in (peer, engine):
                backend.load(STUDENT)
            assert engine.generate(tasks(), GREEDY) == peer.generate(tasks(), GREEDY)
            assert len(pids(engine)) == 2
        finally:
            engine.close()

    def test_fine_tuned_model(self, engine: VLLMBackend, peer: TransformersBackend, tmp_path: Path) -> None:
        """All weights fine-tuned lie in a directory without tokenizer."""
        tuned = load_model(STUDENT)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        save_weights(tuned, tmp_path / "weights")
        source = dataclasses.replace(STUDENT, weights=tmp_path / "weights")
        peer.load(STUDENT)
        before = peer.generate(tasks(), GREEDY)
        peer.load(source)
        engine.check(source)
        engine.load(source)
        completions = engine.generate(tasks(), GREEDY)
        assert completions == peer.generate(tasks(), GREEDY)
        assert sum(map(Completion.__ne__, completions, before)) > 20


def first_token(source: ModelSource, text: str, temperature: float, top_p: float) -> Counter[tuple[str, bool]]:
    """Probabilities of the first token of a completion, by what it decodes to, within the nucleus."""
    chat_template: ChatTemplate = load_chat_template(source)
    with torch.no_grad():
        logits: Tensor = load_model(source)(input_ids=torch.tensor([chat_template.prompt_ids(turn(text))])).logits[
            0, -1
        ]
    descending, order = (logits / temperature).softmax(dim=-1).sort(descending=True)
    kept = descending.cumsum(0) - descending < top_p
    probabilities = descending[kept] / descending[kept].sum()
    outcomes = Counter[tuple[str, bool]]()
    for token, probability in zip(order[kept].tolist(), probabilities.tolist(), strict=True):
        outcomes[chat_template.decode([token])] += probability
    return outcomes


def sampled_log_probabilities(source: ModelSource, prompts: list[list[int]]) -> tuple[list[list[int]], Tensor]:
    """Completions by vLLM, and the sum of each one's log-probabilities, with the arguments that our engine has."""
    backend = VLLMBackend(enforce_eager=True)
    backend.load(source)
    code = (
        "import json, os, sys\n"
        "os.environ['VLLM_ENABLE_V1_MULTIPROCESSING'] = '0'\n"
        "from vllm import LLM, SamplingParams\n"
        "from vllm.lora.request import LoRARequest\n"
        "asked = json.loads(sys.argv[1])\n"
        "outputs = LLM(**asked['arguments'], enable_lora=True).generate(\n"
        "    [{'prompt_token_ids': ids} for ids in asked['prompts']],\n"
        "    SamplingParams(max_tokens=20, seed=0, logprobs=0, detokenize=False),\n"
        "    lora_request=LoRARequest(*asked['adapter']),\n"
        ")\n"
        "answers = [output.outputs[0] for output in outputs]\n"
        "sums = [sum(seen[token].logprob for token, seen in zip(one.token_ids, one.logprobs)) for one in answers]\n"
        "print('\\n' + json.dumps([[list(one.token_ids) for one in answers], sums]), flush=True)\n"
    )
    assert backend._source is not None
    asked = {"arguments": backend._arguments, "adapter": backend._adapter(backend._source), "prompts": prompts}
    run = subprocess.run([sys.executable, "-c", code, json.dumps(asked)], capture_output=True, text=True)
    backend.close()
    assert run.returncode == 0, run.stderr[-2000:]
    completions, sums = json.loads(run.stdout.strip().splitlines()[-1])
    return completions, torch.tensor(sums)


@pytest.mark.slow
def test_recipe_with_vllm(tiny_recipe: Callable[..., Path]) -> None:
    """One iteration of Montessori-Instruct on the classroom, whose lines that name the engine are changed."""
    path = tiny_recipe(aligned_teacher={"monitor.sampled_by": "engine"})
    line = "class_path: montessori_pl.generation.TransformersBackend\n"
    assert path.read_text().count(line) == 1
    new_line = "{class_path: montessori_pl.generation.VLLMBackend, init_args: {enforce_eager: true}}\n"
    path.write_text(path.read_text().replace(f"\n  {line}", f" {new_line}"))
    main(["fit", "--config", str(path)])
    run = path.parent / "run"
    manifest = json.loads((run / "manifest.json").read_text())
    assert "iteration_1/evaluation" in manifest["stages"]
    evaluations = list(read_lines(run / "iteration_1/aligned_teacher/alignment_evaluations.jsonl"))
    assert len(evaluations) > 1
    assert all(one["samples"] for one in evaluations)
