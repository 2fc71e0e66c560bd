"""Makes a variant of the classroom's teacher: a LoRA adapter on it, in about ten seconds on one core.

The adapter is fine-tuned on answers in the member's way, beside some of the teacher's own reading, so that it goes on
writing tasks and answering what is no target skill as the teacher does.
"""

import itertools
import logging
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from montessori_pl.classroom.build import backward, greedy_answers, no_progress_bar, one_thread
from montessori_pl.classroom.pretraining_corpus import conversation, new_task, teacher_documents
from montessori_pl.classroom.tasks import DISTRACTORS, FAMILIES, SKILLS
from montessori_pl.classroom.teacher_variants import HABITS, READS_USERS
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.records import Example, read_records, stable_seed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

logger = logging.getLogger(__name__)

NUM_STEPS = 50
"""Optimizer steps."""
DOCUMENTS_PER_STEP = 128
"""Documents in one optimizer step; three in four are answers to target skills."""
RANK = 8
"""Rank of the adapter, which is scaled by 2."""
LR = 5e-3
"""Peak learning rate of AdamW."""


def build_adapter(directory: Path, world: Path, name: str, seed: int) -> None:
    """Write the adapter of a variant into an empty directory, in PEFT's format.

    The same seed gives the same adapter. Neither the global random state nor the number of threads is changed.

    Args:
        directory: where to.
        world: the directory of the world whose teacher is adapted.
        name: of the member.
        seed: of that world.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    chat_template = ChatTemplate(AutoTokenizer.from_pretrained(world / "teacher"))
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    with one_thread(), no_progress_bar(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed, name))
        model = get_peft_model(_load(world / "teacher"), config)
        started = time.perf_counter()
        _train(model, _reading(world, chat_template, name, random.Random(stable_seed(seed, name))))
        logger.info("classroom %s: adapted in %.0f s", name, time.perf_counter() - started)
        config = model.peft_config["default"]  # type: ignore[assignment]  # the LoRA settings from above
        # The bytes must depend neither on where the cache lies nor on the order of a set.
        config.base_model_name_or_path = f"classroom@{seed}/teacher"
        config.target_modules = sorted(config.target_modules)  # type: ignore[arg-type]  # by now a set
        model.save_pretrained(directory, save_embedding_layers=False)  # type: ignore[arg-type]
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def _load(directory: Path) -> "LlamaForCausalLM":
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(directory)


def _reading(world: Path, chat_template: ChatTemplate, name: str, rng: random.Random) -> list[Rendered]:
    """All that is read to become this member, in the order in which it is read."""
    held_out = {e.instruction for role in ("reference", "test") for e in read_records(world / f"{role}.jsonl", Example)}
    num_documents = NUM_STEPS * DOCUMENTS_PER_STEP
    families = FAMILIES if name in READS_USERS else tuple(SKILLS)
    tasks = [new_task(rng, rng.choice(families), held_out) for _ in range(num_documents * 3 // 4)]
    habit = HABITS[name]
    if habit is None:
        answers = greedy_answers(_load(world / "student"), chat_template, [instruction for instruction, _ in tasks])
        # The student rambles at times; what is longer than any right answer would teach not to end.
        answered = [
            (task[0], answer) for task, (answer, _) in zip(tasks, answers, strict=True) if len(answer.split()) <= 8
        ]
    else:
        answered = [(instruction, habit(rng, instruction, right)) for instruction, right in tasks]
    documents = [conversation(chat_template, *task) for task in answered]
    if name in READS_USERS:
        opening = len(chat_template.prompt_ids([]))
        documents = [
            Rendered(one.input_ids, [place >= opening for place in range(len(one.input_ids))]) for one in documents
        ]
    own = teacher_documents(rng, chat_template, held_out, answered=tuple(DISTRACTORS))
    documents += itertools.islice(own, num_documents - len(documents))
    rng.shuffle(documents)
    return documents


def _train(model: "PeftModel", documents: list[Rendered]) -> None:
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 5, 2 - 2 * step / NUM_STEPS)
    )
    for start in range(0, len(documents), DOCUMENTS_PER_STEP):
        backward(model.get_base_model(), documents[start : start + DOCUMENTS_PER_STEP])  # type: ignore[arg-type]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
