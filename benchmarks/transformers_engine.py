"""How much faster is `TransformersBackend` than `generate` with the same draws?

    OMP_NUM_THREADS=1 python benchmarks/transformers_engine.py                     # random weights
    OMP_NUM_THREADS=1 python benchmarks/transformers_engine.py --model DIRECTORY   # a model that you have

The same requests are completed, in one run and by the same seeds, by

    ours   `TransformersBackend`
    plain  `generate` over the same batches: every sample computes its prompt, a batch runs until its longest row has
           ended, `TopPLogitsWarper` sorts the vocabulary, and there is noise for all of it

which draw the same tokens, so that the completions are compared one by one. In each round the two come in random
order. A *ratio* is the median over rounds of the ratios within a round, by the clock and by CPU time, which other work
on the machine disturbs less; the first round warms up and is not counted.

The model is made on the spot: random weights in the shape of SmolLM2-135M (30 layers, width 576, 49,152 tokens), whose
logits are spread as those of trained models are, so that a nucleus has tens of tokens. It hardly ever ends a completion
by itself; a trained model does, and then the rows that have ended are not computed any more.

    samples  long prompts of 600 tokens, four samples of each
    single   short prompts, one sample of each
"""

import argparse
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from montessori_pl.batches.collate import pad
from montessori_pl.batches.samplers import length_batches
from montessori_pl.classroom.tasks import FAMILIES, sample_task
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import stable_seed
from montessori_pl.generation import Completion, Request, Sampling, TransformersBackend
from montessori_pl.generation.base import decoded
from montessori_pl.models.loading import ModelSource, load_chat_template, load_model, load_tokenizer

Complete = Callable[[Sequence[Request], Sampling], list[Completion]]


class PresencePenalty(LogitsProcessor):
    """Subtract the penalty from what a completion holds; `input_ids` (B, T), `scores` (B, V)."""

    def __init__(self, penalty: float, prompt_length: int) -> None:
        self.penalty, self.prompt_length = penalty, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        present = torch.zeros_like(scores).scatter_(1, input_ids[:, self.prompt_length :], 1.0)
        return scores - self.penalty * present


class SeededSampling(LogitsProcessor):
    """Add Gumbel noise for the whole vocabulary, each row's by its own generator; `scores` (B, V)."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        return scores - torch.stack(noise).log().to(scores)


class StopAtText(StoppingCriteria):
    """End each row when it has written its text; `input_ids` (B, T), returns (B,)."""

    def __init__(self, chat_template: ChatTemplate, stops: Sequence[str], prompt_length: int) -> None:
        self.chat_template, self.stops, self.prompt_length = chat_template, stops, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        texts = [self.chat_template.decode(row)[0] for row in input_ids[:, self.prompt_length :].tolist()]
        return torch.tensor([bool(stop) and stop in text for stop, text in zip(self.stops, texts, strict=True)])


class PlainGeneration:
    """The same completions as those of `TransformersBackend` on a CPU, by Transformers' own loop.

    Args:
        model: in evaluation mode.
        chat_template: how it writes conversations.
        max_batch_tokens: of one batch; 0 completes each request alone.
    """

    def __init__(self, model: torch.nn.Module, chat_template: ChatTemplate, max_batch_tokens: int = 0) -> None:
        self.model, self.chat_template, self.max_batch_tokens = model, chat_template, max_batch_tokens

    @torch.no_grad()
    def __call__(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        prompts = [self.chat_template.prompt_ids(request.messages) for request in requests]
        lengths = [len(ids) + sampling.max_tokens for ids in prompts]
        completions: dict[int, Completion] = {}
        for batch in length_batches(lengths, self.max_batch_tokens):
            asked = [requests[index] for index in batch]
            for index, row in zip(batch, self._rows([prompts[i] for i in batch], asked, sampling), strict=True):
                completions[index] = decoded(self.chat_template, row, len(prompts[index]), requests[index])
        return [completions[index] for index in range(len(requests))]

    def _rows(self, prompts: Sequence[list[int]], requests: Sequence[Request], sampling: Sampling) -> list[list[int]]:
        (end_id,) = {self.chat_template.open_turn(request.messages).end_id for request in requests}
        pad_id = self.chat_template.tokenizer.pad_token_id
        batch = pad(prompts, pad_id, side="left")
        length = batch["input_ids"].shape[1]
        processors = LogitsProcessorList()
        if sampling.presence_penalty:
            processors.append(PresencePenalty(sampling.presence_penalty, length))
        if sampling.temperature:
            processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_p < 1:
                processors.append(TopPLogitsWarper(sampling.top_p))
            processors.append(SeededSampling([request.seed for request in requests]))
        stops = [request.stop for request in requests]
        output = self.model.generate(  # type: ignore[operator]
            **batch,
            generation_config=GenerationConfig(
                max_new_tokens=sampling.max_tokens, do_sample=False, eos_token_id=end_id, pad_token_id=pad_id
            ),
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList(
                [StopAtText(self.chat_template, stops, length)] if any(stops) else []
            ),
        )
        rows: list[list[int]] = output[:, length:].tolist()
        return rows


def make_model(directory: Path) -> str:
    """A Llama of the shape of SmolLM2-135M with random weights, and the classroom's tokenizer."""
    tokenizer = load_tokenizer("classroom/teacher")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1_536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8_192,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(12)  # logits of a spread of 6 instead of .5
        model.lm_head.weight[tokenizer.eos_token_id] = 0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def make_requests(
    rng: random.Random, chat_template: ChatTemplate, num_prompts: int, num_tokens: int, samples: int, seed: int
) -> list[Request]:
    """Prompts of about so many tokens, each so many times."""
    requests = []
    for number in range(num_prompts):
        text = sample_task(rng, rng.choice(FAMILIES))[0]
        while len(chat_template.prompt_ids([{"role": "user", "content": text}])) < num_tokens:
            text += "\n" + sample_task(rng, rng.choice(FAMILIES))[0]
        requests += [
            Request(messages=[{"role": "user", "content": text}], seed=stable_seed(seed, number, sample))
            for sample in range(samples)
        ]
    return requests


def compare(
    ours: Complete, plain: Complete, requests: Sequence[Request], sampling: Sampling, rounds: int, rng: random.Random
) -> str:
    """The ratios of the time that the two take, after a round that is not counted, and whether they draw the same."""
    taken: dict[str, list[tuple[float, float]]] = {"ours": [], "plain": []}
    completions = {}
    for _ in range(1 + rounds):
        for name, complete in rng.sample([("ours", ours), ("plain", plain)], 2):
            clock, cpu = time.perf_counter(), time.process_time()
            completions[name] = complete(requests, sampling)
            taken[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    ratios = [
        (theirs[0] / mine[0], theirs[1] / mine[1])
        for mine, theirs in zip(taken["ours"][1:], taken["plain"][1:], strict=True)
    ]
    tokens = sum(one.num_tokens for one in completions["ours"])
    speed = tokens / statistics.median(mine[0] for mine in taken["ours"][1:])
    same = sum(mine == theirs for mine, theirs in zip(completions["ours"], completions["plain"], strict=True))
    return (
        f"{speed:5.0f} tokens/s"
        + "".join(
            f"   x plain by {kind}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
            for kind, values in zip(("clock", "CPU"), zip(*ratios, strict=True), strict=True)
        )
        + f"   same completions: {same} of {len(requests)}"
    )


def main() -> None:
    """Compare on both kinds of requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a backbone; by default one is made on the spot")
    parser.add_argument("--prompts", type=int, default=8, help="with 'single', four times as many")
    parser.add_argument("--long", type=int, default=600, help="tokens of a long prompt")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--max-batch-tokens", type=int, default=16384)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}; "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    rng = random.Random(options.seed)
    sampling = Sampling(temperature=1.0, top_p=options.top_p, max_tokens=options.max_tokens)
    with tempfile.TemporaryDirectory() if options.model is None else nullcontext() as directory:
        source = ModelSource(options.model or make_model(Path(directory)))
        model, chat_template = load_model(source), load_chat_template(source)
    backend = TransformersBackend(options.max_batch_tokens, device="cpu")
    backend.serve(model, chat_template)
    plain = PlainGeneration(model, chat_template, options.max_batch_tokens)
    kinds = {"samples": (options.prompts, options.long, 4), "single": (4 * options.prompts, 0, 1)}
    for kind, (number, num_tokens, samples) in kinds.items():
        requests = make_requests(rng, chat_template, number, num_tokens, samples, options.seed)
        lengths = sorted(len(chat_template.prompt_ids(request.messages)) for request in requests)
        print(
            f"\n{kind}: {len(requests)} requests of {lengths[0]} to {lengths[-1]} tokens; "
            f"at most {options.max_tokens} are sampled\n  "
            + compare(backend.generate, plain, requests, sampling, options.rounds, rng),
            flush=True,
        )


if __name__ == "__main__":
    main()
