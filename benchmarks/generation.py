"""How fast are our engines, beside what they are made of?

    OMP_NUM_THREADS=1 python benchmarks/generation.py                       # both comparisons, minutes on two cores
    OMP_NUM_THREADS=1 python benchmarks/generation.py --model classroom/teacher

The same requests are completed, in one run and with the same sampling, by

    vLLM          `VLLMBackend`, from messages to texts
      bare          `LLM.generate` in a process of its own, from token ids to texts; scheduled within that process
      bare, split   the same as vLLM has it by default: the engine's core in one more process
    Transformers  `TransformersBackend`, from messages to texts, in batches of similar length
      loop          `generate` in a plain loop over batches of as many requests each, in the order in which they come
      continuous    `generate_batch`, Transformers' continuous batching, where `--continuous` asks for it

In each round the methods come in random order. A *ratio* is the median over rounds of the ratios of tokens per second
within a round, by the clock and by the CPU time of all processes, which other work on the machine disturbs less; the
first round warms up and is not counted. vLLM's completions are compared one by one, bare and not;
those of Transformers cannot be, because only ours draw each request by its own seed.

The model is made on the spot: a Llama of four million random weights, which hardly ever ends a completion by itself.
The requests are those of a teacher (`shots`: prompts of Self-Instruct, nearly equal in length) and instructions whose
lengths are spread as people's are (`long tail`: log-normal, a few words to hundreds).
"""

import argparse
import dataclasses
import importlib.util
import math
import multiprocessing
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from montessori_pl.batches.samplers import length_batches
from montessori_pl.classroom.names import locate
from montessori_pl.classroom.tasks import FAMILIES, sample_task
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.formats import read_examples
from montessori_pl.data.records import stable_seed
from montessori_pl.generation import Completion, Request, Sampling, TransformersBackend, VLLMBackend
from montessori_pl.generation.head_padding import PaddedCopies
from montessori_pl.models.loading import ModelSource, base_location, load_chat_template, load_model, load_tokenizer
from montessori_pl.synthesis.base import SelfInstruct

LONGEST_PROMPT = 400
"""Tokens; the longest instructions of the long tail are cut to fewer words."""


@dataclass(frozen=True)
class Timed:
    """What one method did in one round."""

    seconds: float
    """Wall time."""
    num_tokens: int
    """Sampled tokens, ends included."""
    texts: tuple[str, ...]
    """Completions, without the blank in front of some, which vLLM's own decoding keeps."""
    cpu_seconds: float = math.nan
    """CPU time of all processes."""


Method = Callable[[Sequence[Request], Sampling], Timed]


def make_model(directory: Path) -> str:
    """A Llama of four million random weights, with the classroom's tokenizer."""
    tokenizer = load_tokenizer("classroom/teacher")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=5,
        num_attention_heads=8,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def shots(rng: random.Random, chat_template: ChatTemplate, number: int) -> list[str]:
    """Prompts of Self-Instruct on the classroom's seeds."""
    synthesizer, seed_tasks = SelfInstruct("classroom"), read_examples(locate("classroom/seed_tasks"))
    return [synthesizer.prompt(rng, seed_tasks, [])[0] for _ in range(number)]


def long_tail(rng: random.Random, chat_template: ChatTemplate, number: int) -> list[str]:
    """Instructions of 25 words in the median; one in twenty has more than 130."""
    texts = []
    while len(texts) < number:
        words: list[str] = []
        length = max(3, round(rng.lognormvariate(3.2, 1.0)))
        while len(words) < length:
            words += sample_task(rng, rng.choice(FAMILIES))[0].split()
        text = " ".join(words[:length])
        if len(chat_template.prompt_ids([{"role": "user", "content": text}])) <= LONGEST_PROMPT:
            texts.append(text)
    return texts


def ours(backend: VLLMBackend | TransformersBackend, requests: Sequence[Request], sampling: Sampling) -> Timed:
    """One of our engines."""
    start = time.perf_counter()
    completions = backend.generate(requests, sampling)
    return timed(start, completions)


def timed(start: float, completions: Sequence[Completion]) -> Timed:
    """What has been done since the start."""
    seconds = time.perf_counter() - start
    return Timed(seconds, sum(one.num_tokens for one in completions), tuple(one.text.strip() for one in completions))


class BareVLLM:
    """`LLM.generate` in a process of its own, where the time is taken.

    Args:
        model: the directory of the weights.
        chat_template: how prompts are rendered, beforehand.
        split: whether the engine's core runs in one more process.
        eager: without compiled graphs.
    """

    def __init__(self, model: str, chat_template: ChatTemplate, split: bool, eager: bool) -> None:
        self.chat_template = chat_template
        self._pipe, theirs = multiprocessing.Pipe()
        arguments = {"model": model, "dtype": "float32", "enforce_eager": eager, "max_model_len": chat_template.context}
        arguments["tokenizer"] = chat_template.tokenizer.name_or_path
        if not torch.accelerator.is_available():
            arguments["enable_chunked_prefill"] = False  # or requests with a seed crash: see `VLLMBackend`
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=serve_bare, args=(theirs, arguments, split))
        self._process.start()
        theirs.close()  # or we would wait for ever for a process that has crashed

    def __call__(self, requests: Sequence[Request], sampling: Sampling) -> Timed:
        prompts = [self.chat_template.prompt_ids(request.messages) for request in requests]
        common = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "max_tokens": sampling.max_tokens,
            "stop_token_ids": [self.chat_template.end_id],
        }
        self._pipe.send((prompts, [{**common, "seed": request.seed} for request in requests]))
        timed: Timed = self._pipe.recv()
        return timed

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def serve_bare(pipe: Connection, arguments: Mapping[str, Any], split: bool) -> None:
    """What runs in the process of `BareVLLM`."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(split))
    from vllm import LLM, SamplingParams

    llm = LLM(**arguments)
    while (asked := pipe.recv()) is not None:
        prompts = [{"prompt_token_ids": ids} for ids in asked[0]]
        llm.reset_prefix_cache()
        start = time.perf_counter()
        outputs = llm.generate(prompts, [SamplingParams(**one) for one in asked[1]], use_tqdm=False)
        seconds = time.perf_counter() - start
        answers = [output.outputs[0] for output in outputs]
        pipe.send(
            Timed(seconds, sum(len(one.token_ids) for one in answers), tuple(one.text.strip() for one in answers))
        )
    llm.llm_engine.engine_core.shutdown()  # or this process would wait for ever for that of the core


class PlainLoop:
    """`generate` over batches in the order in which the requests come, as many batches as our engine makes.

    Args:
        source: the model.
        chat_template: how it writes conversations.
        max_batch_tokens: of our engine.
        continuous: by continuous batching, which makes its own batches.
    """

    def __init__(
        self, source: ModelSource, chat_template: ChatTemplate, max_batch_tokens: int, continuous: bool = False
    ) -> None:
        self.model, self.chat_template, self.max_batch_tokens, self.continuous = (
            load_model(source),
            chat_template,
            max_batch_tokens,
            continuous,
        )

    @torch.no_grad()
    def __call__(self, requests: Sequence[Request], sampling: Sampling) -> Timed:
        start = time.perf_counter()
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            eos_token_id=self.chat_template.end_id,
            pad_token_id=self.chat_template.tokenizer.pad_token_id,
            use_cache=True,
        )
        prompts = [self.chat_template.prompt_ids(request.messages) for request in requests]
        if self.continuous:
            outputs = self.model.generate_batch(prompts, config, warmup=False)  # type: ignore[operator]
            rows = [output.generated_tokens for output in outputs.values()]
        else:
            rows = self._loop(prompts, config, sampling)
        completions = [self._completion(row) for row in rows]
        return timed(start, completions)

    def _loop(self, prompts: list[list[int]], config: GenerationConfig, sampling: Sampling) -> list[list[int]]:
        batches = length_batches([len(ids) + sampling.max_tokens for ids in prompts], self.max_batch_tokens)
        size = -(-len(prompts) // len(batches))
        rows: list[list[int]] = []
        for first in range(0, len(prompts), size):
            batch = self.chat_template.tokenizer.pad(
                {"input_ids": prompts[first : first + size]}, padding_side="left", return_tensors="pt"
            )
            output = self.model.generate(**batch, generation_config=config)  # type: ignore[operator]
            rows += output[:, batch["input_ids"].shape[1] :].tolist()
        return rows

    def _completion(self, ids: list[int]) -> Completion:
        text, finished = self.chat_template.decode(ids)
        return Completion(
            text=text, finished=finished, num_tokens=ids.index(self.chat_template.end_id) + 1 if finished else len(ids)
        )


def compare(
    methods: Mapping[str, Method], requests: Sequence[Request], sampling: Sampling, rounds: int, rng: random.Random
) -> dict[str, list[Timed]]:
    """Every method in every round, in random order; the first round is dropped."""
    seen: dict[str, list[Timed]] = {name: [] for name in methods}
    for _ in range(1 + rounds):
        for name in rng.sample(list(methods), len(methods)):
            before = cpu_seconds()
            outcome = methods[name](requests, sampling)
            seen[name].append(dataclasses.replace(outcome, cpu_seconds=cpu_seconds() - before))
    return {name: all_rounds[1:] for name, all_rounds in seen.items()}


def cpu_seconds() -> float:
    """CPU time so far, of this process and of all below it; engines that are not asked wait without using any."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def report(seen: Mapping[str, Sequence[Timed]]) -> None:
    """Print the speed of the first method, which is ours, and how many times as fast it is as each of the others."""
    name_of_ours, our_rounds = next(iter(seen.items()))
    for name, rounds in seen.items():
        if name == name_of_ours:
            speed = statistics.median(one.num_tokens / one.seconds for one in rounds)
            print(f"  {name}: {speed:.0f} tokens/s", flush=True)
            continue
        by_clock, by_cpu = [], []
        for mine, theirs in zip(our_rounds, rounds, strict=True):
            work = mine.num_tokens / theirs.num_tokens
            by_clock.append(work * theirs.seconds / mine.seconds)
            by_cpu.append(work * theirs.cpu_seconds / mine.cpu_seconds)
        line = f"    {'x ' + name:14}" + "".join(
            f"   {kind}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            for kind, ratios in (("clock", by_clock), ("CPU", by_cpu))
        )
        if name_of_ours == "vLLM":
            same = sum(map(str.__eq__, our_rounds[0].texts, rounds[0].texts))
            line += f"   same completions: {same:,} of {len(rounds[0].texts):,}"
        print(line, flush=True)


@contextmanager
def vllm_methods(source: ModelSource, chat_template: ChatTemplate, eager: bool) -> Iterator[dict[str, Method]]:
    """Ours and the bare ones, all of them running."""
    with ExitStack() as stack:
        backend = stack.enter_context(closing(VLLMBackend(enforce_eager=eager)))
        backend.load(source)
        methods: dict[str, Method] = {"vLLM": partial(ours, backend)}
        copies = stack.enter_context(closing(PaddedCopies()))
        model = base_location(source if torch.accelerator.is_available() else copies.runnable(source))
        for name, split in (("bare", False), ("bare, split", True)):
            methods[name] = stack.enter_context(closing(BareVLLM(model, chat_template, split, eager)))
        yield methods


def transformers_methods(
    source: ModelSource, chat_template: ChatTemplate, max_batch_tokens: int, continuous: bool
) -> dict[str, Method]:
    """Ours and the plain ones, on the CPU."""
    backend = TransformersBackend(max_batch_tokens=max_batch_tokens, device="cpu")
    backend.load(source)
    methods: dict[str, Method] = {"Transformers": partial(ours, backend)}
    methods["loop"] = PlainLoop(source, chat_template, max_batch_tokens)
    if continuous:
        methods["continuous"] = PlainLoop(source, chat_template, max_batch_tokens, continuous=True)
    return methods


def main() -> None:
    """Compare on both kinds of requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a backbone; by default one is made on the spot")
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-batch-tokens", type=int, default=4096, help="of TransformersBackend")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-vllm", action="store_true", help="the second comparison alone, also where vLLM is")
    parser.add_argument("--compiled", action="store_true", help="let vLLM compile graphs, which takes a minute each")
    parser.add_argument("--continuous", action="store_true", help="with continuous batching; slow on a CPU")
    options = parser.parse_args()
    with_vllm = importlib.util.find_spec("vllm") is not None and not options.without_vllm
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}; "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    rng, sampling = random.Random(options.seed), Sampling(temperature=1.0, top_p=0.9, max_tokens=options.max_tokens)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        source = ModelSource(options.model or make_model(Path(directory)))
        chat_template = load_chat_template(source)
        groups = [transformers_methods(source, chat_template, options.max_batch_tokens, options.continuous)]
        if with_vllm:
            groups.insert(0, stack.enter_context(vllm_methods(source, chat_template, not options.compiled)))
        for kind in (shots, long_tail):
            requests = [
                Request(messages=[{"role": "user", "content": text}], seed=stable_seed(options.seed, number))
                for number, text in enumerate(kind(rng, chat_template, options.requests))
            ]
            lengths = sorted(len(chat_template.prompt_ids(request.messages)) for request in requests)
            print(
                f"\n{kind.__name__}: {len(requests)} requests of {lengths[0]} to {lengths[-1]} tokens, median "
                f"{lengths[len(lengths) // 2]}; at most {sampling.max_tokens} are sampled"
            )
            for methods in groups:
                report(compare(methods, requests, sampling, options.rounds, rng))


if __name__ == "__main__":
    main()
