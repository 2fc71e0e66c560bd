"""Makes a teacher of the gym: a language model that learns in minutes to write its tasks and to answer them.

The model reads tasks of all families, each drawn as often as any other, with right answers, and requests for a new task
with some shots and the task that is written then. So it writes evenly: half of what it writes are distractors.
"""

import itertools
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from montessori_pl.classroom.build import backward, no_progress_bar
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.records import Message, stable_seed
from montessori_pl.data.special_tokens import special_token_ids
from montessori_pl.synthesis.prompts import TEMPLATES, fill
from montessori_pl.worlds.gym.sets import draw_sets, new_task
from montessori_pl.worlds.gym.tasks import FAMILIES, Difficulty

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

NUM_STEPS = 240
"""Optimizer steps."""
STEPS_BETWEEN_NEWS = 40
"""Optimizer steps after which a word is said."""
DOCUMENTS_PER_STEP = 12
"""Documents in one optimizer step; one in three is a task that is written."""
NUM_SHOTS = 2
"""Tasks that a request shows."""
RANK = 16
"""Rank of the adapter, which is scaled by 2."""
LR = 1e-3
"""Peak learning rate of AdamW."""
NUM_THREADS = 2
"""Threads that compute, whatever the machine has."""


def build_teacher(directory: Path, base: Path, difficulty: Difficulty, seed: int) -> None:
    """Write a whole model, the base with what it has learned, into an empty directory.

    The same base, difficulty and seed give the same weights. Neither the global random state nor the number of threads
    is changed.

    Args:
        directory: where to.
        base: a checkpoint with a chat template.
        difficulty: of the tasks.
        seed: of the world.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    chat_template = ChatTemplate(tokenizer, _layout(tokenizer))
    documents = _documents(chat_template, difficulty, seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    # As many threads everywhere: sums in another order would make another teacher.
    with _threads(NUM_THREADS), no_progress_bar(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed("gym teacher", seed))
        network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if not (hasattr(network, "model") and hasattr(network, "lm_head")):
            raise ValueError(
                f"a {type(network).__name__} cannot become the gym's teacher, which needs a model that is made of "
                "`model` and `lm_head`, as Llama, Mistral, Qwen and Gemma are; give a backbone of such a kind"
            )
        model = get_peft_model(network, config)
        _train(model.get_base_model(), documents)  # type: ignore[arg-type]  # the model that was loaded
        model.merge_and_unload().save_pretrained(directory)  # type: ignore[operator]  # PEFT leaves it untyped
    tokenizer.chat_template = chat_template.text.source
    tokenizer.save_pretrained(directory)


def _layout(tokenizer: "PreTrainedTokenizerBase") -> str:
    """ChatML where the base's template is a kind of it: that often writes a system turn, longer than a task is."""
    turns = "<|im_start|>" in special_token_ids(tokenizer) and tokenizer.eos_token == "<|im_end|>"
    return "chatml" if turns else "auto"


def _documents(chat_template: ChatTemplate, difficulty: Difficulty, seed: int) -> Iterator[Rendered]:
    """Endless reading: two answers to one task that is written; nothing of the reference or the test set."""
    rng = random.Random(stable_seed("gym teacher", difficulty, seed))
    sets = draw_sets(difficulty, seed)
    held_out = {example.instruction for name in ("reference", "test") for example in sets[name]}
    families = list(FAMILIES)
    for number in itertools.count():
        question, answer = new_task(rng, rng.choice(families), difficulty, held_out)
        if number % 3 == 2:
            shots = [new_task(rng, rng.choice(families), difficulty, held_out)[0] for _ in range(NUM_SHOTS)]
            question, answer = fill(TEMPLATES["new_task"], "\n\n".join(shots)), question
        messages: list[Message] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield chat_template.render(messages)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Inside, torch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(model: "LlamaForCausalLM", documents: Iterator[Rendered]) -> None:
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 5, 2 - 2 * step / NUM_STEPS)
    )
    model.train()
    for step in range(NUM_STEPS):
        if step and step % STEPS_BETWEEN_NEWS == 0:
            log.warning("  %d of %d steps", step, NUM_STEPS)
        backward(model, list(itertools.islice(documents, DOCUMENTS_PER_STEP)))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
