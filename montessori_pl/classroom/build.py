"""Builds one classroom: tokenizer, teacher, student base and the three sets, in two to seven minutes on one core.

The models are real `LlamaForCausalLM` checkpoints. Matrices are trained with Muon, the rest with AdamW: in a prototype
AdamW alone, at one learning rate, brought the teacher to an accuracy of .18 where Muon reached .83 at equal tokens.
"""

import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from montessori_pl.classroom.pretraining_corpus import draw_sets, student_documents, teacher_documents
from montessori_pl.classroom.tasks import FAMILIES, sample_task
from montessori_pl.classroom.tokenizer import train_tokenizer
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.records import Example, append_records, stable_seed
from montessori_pl.synthesis.prompts import TEMPLATES

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

MLP_WIDTH = 192
"""Twice the teacher's width: three times as wide took 8% longer for each token and was no better (.99 both)."""

Reading = Callable[[random.Random, ChatTemplate, set[str]], Iterator[Rendered]]


@dataclass(frozen=True)
class Pretraining:
    """How one model of the classroom comes about."""

    reading: Reading
    """What it reads."""
    width: int
    """Hidden size."""
    num_tokens: int
    """Tokens read."""
    layers: int = 3
    """Number of transformer blocks."""
    heads: int = 4
    """Number of attention heads."""
    documents_per_step: int = 128
    """Documents in one optimizer step."""
    matrix_lr: float = 0.02
    """Peak learning rate of Muon."""
    other_lr: float = 4e-3
    """Peak learning rate of AdamW, for embeddings, head and norms."""


MODELS = {
    "teacher": Pretraining(teacher_documents, width=96, num_tokens=1_400_000),
    "student": Pretraining(student_documents, width=64, num_tokens=600_000),
}


def build_world(directory: Path, seed: int) -> None:
    """Write a classroom into an empty directory: `teacher/`, `student/` and the sets as JSON lines.

    The same seed gives the same world. Neither the global random state nor the number of threads is changed.
    """
    sets = draw_sets(random.Random(stable_seed(seed, "sets")))
    for name, examples in sets.items():
        append_records(directory / f"{name}.jsonl", examples)
    tokenizer = _make_tokenizer(seed)
    for name, pretraining in MODELS.items():
        # One thread: sums in another order would make another world, and the models are too small to gain from more.
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(seed, name))
            model = _pretrain(
                name, pretraining, tokenizer, seed, {e.instruction for e in sets["reference"] + sets["test"]}
            )
            accuracy = greedy_accuracy(model, ChatTemplate(tokenizer), sets["test"])
        logger.info("classroom %s: greedy accuracy %.3f on the test set", name, accuracy)
        with no_progress_bar():
            model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)


def greedy_accuracy(
    model: "LlamaForCausalLM | PeftModel", chat_template: ChatTemplate, examples: Sequence[Example]
) -> float:
    """Share of the examples that the model answers right and ends, taking the likeliest token each time."""
    answers = greedy_answers(model, chat_template, [example.instruction for example in examples])
    return sum(a == (e.response, True) for a, e in zip(answers, examples, strict=True)) / len(examples)


@torch.no_grad()
def greedy_answers(
    model: "LlamaForCausalLM | PeftModel", chat_template: ChatTemplate, instructions: Sequence[str]
) -> list[tuple[str, bool]]:
    """What the model answers when it takes the likeliest token each time, and whether it ends within 24 tokens."""
    prompts = sorted(
        (
            (chat_template.prompt_ids([{"role": "user", "content": text}]), place)
            for place, text in enumerate(instructions)
        ),
        key=lambda prompt: len(prompt[0]),
    )
    answers: dict[int, tuple[str, bool]] = {}
    for _, group in itertools.groupby(prompts, key=lambda prompt: len(prompt[0])):  # equal lengths need no padding
        ids, places = zip(*group, strict=True)
        inputs = torch.tensor(ids)
        outputs = model.generate(  # type: ignore[misc]  # typed for a mixin that Llama is made of
            input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=24, do_sample=False
        )[:, inputs.shape[1] :]
        answers |= zip(places, map(chat_template.decode, outputs.tolist()), strict=True)
    return [answers[place] for place in range(len(answers))]


def _make_tokenizer(seed: int) -> "PreTrainedTokenizerFast":
    rng = random.Random(stable_seed(seed, "tokenizer"))
    tasks = [sample_task(rng, rng.choice(FAMILIES)) for _ in range(10_000)]
    # The request is repeated so that each of its words becomes one token.
    return train_tokenizer([text for task in tasks for text in task] + [TEMPLATES["classroom"].split("\n")[0]] * 300)


def _pretrain(
    name: str, pretraining: Pretraining, tokenizer: "PreTrainedTokenizerFast", seed: int, held_out: set[str]
) -> "LlamaForCausalLM":
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=pretraining.width,
            intermediate_size=MLP_WIDTH,
            num_hidden_layers=pretraining.layers,
            num_attention_heads=pretraining.heads,
            max_position_embeddings=tokenizer.model_max_length,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    documents = pretraining.reading(random.Random(stable_seed(seed, name)), ChatTemplate(tokenizer), held_out)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    optimizers = (
        torch.optim.Muon(matrices, lr=pretraining.matrix_lr, weight_decay=0.0),
        torch.optim.AdamW(others, lr=pretraining.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    )
    started, done = time.perf_counter(), 0
    while done < pretraining.num_tokens:
        batch = list(itertools.islice(documents, pretraining.documents_per_step))
        progress = done / pretraining.num_tokens
        for optimizer, peak in zip(optimizers, (pretraining.matrix_lr, pretraining.other_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * min(1.0, 20 * progress + 0.05, 2 * (1 - progress))
        backward(model, batch)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done += sum(len(document.input_ids) for document in batch)
    seconds = time.perf_counter() - started
    logger.info(
        "classroom %s: %d parameters, %d tokens, %.0f tokens/s", name, model.num_parameters(), done, done / seconds
    )
    return model.eval()


def backward(model: "LlamaForCausalLM", batch: list[Rendered]) -> None:
    """Add the gradient of the mean loss over the trained tokens of a batch, in parts of like length."""
    num_trained = sum(sum(document.completion_mask) for document in batch)
    batch = sorted(batch, key=lambda document: len(document.input_ids))
    part = max(1, len(batch) * 3 // 4)
    for documents in (batch[:part], batch[part:]):
        length = max(len(document.input_ids) for document in documents)
        ids = torch.zeros(len(documents), length, dtype=torch.long)
        trained = torch.zeros(len(documents), length, dtype=torch.bool)
        for row, document in enumerate(documents):
            ids[row, : len(document.input_ids)] = torch.tensor(document.input_ids)
            trained[row, : len(document.completion_mask)] = torch.tensor(document.completion_mask)
        # Padding stands on the right, where a causal model's earlier tokens do not see it.
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[trained[:, 1:]])
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][trained[:, 1:]], reduction="sum")
        (loss / num_trained).backward()


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Inside, transformers shows no progress bar."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
