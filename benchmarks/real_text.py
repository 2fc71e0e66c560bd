"""The whole recipe on text that people wrote: seeds of Self-Instruct, a reference set of OpenAssistant.

    python benchmarks/real_text.py --data DIR [--weights DIR] --out checkpoints/real_text

It makes two small models, runs `configs/real_text.yaml` with them through the command line, and prints and writes what
came out. It is about paths, not about cleverness: after minutes on one core a model repeats the form of its reading and
little else.

    teacher   a Llama of a million parameters that has read nothing but the seed tasks: as shots with one more task
              behind them, and as instructions with their answers
    student   the checkpoint in `--weights`; without one, a smaller Llama that has read the seed tasks' answers

`--data` holds `self_instruct/seed_tasks.jsonl` and `self_instruct/user_oriented_instructions.jsonl`
(github.com/yizhongw/self-instruct), `open_assistant/en_100_tree.jsonl` (github.com/LAION-AI/Open-Assistant) and
`gsm8k/test.jsonl` (github.com/openai/grade-school-math).
"""

import argparse
import itertools
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.formats import read_source
from montessori_pl.data.records import Example, Message
from montessori_pl.synthesis.prompts import load_template, render_prompt

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CHAT = "plain"
"""The chat layout of both models: checkpoints this small bring no template."""
SOURCES = {
    "seed_tasks": "self_instruct/seed_tasks.jsonl",
    "reference": "open_assistant/en_100_tree.jsonl[:64]",
    "test": "open_assistant/en_100_tree.jsonl[64:]",
    "warmup_data": "self_instruct/user_oriented_instructions.jsonl",
    "recorded": "gsm8k/test.jsonl[:24]",
}
"""What the recipe reads, by role or by stage."""
SECONDS_OF_A_RUN = 3600
"""When the recipe is given up: it takes minutes."""


@dataclass(frozen=True)
class Size:
    """How large a model is, and how much it reads."""

    width: int
    """Hidden size."""
    layers: int
    """Number of transformer blocks."""
    vocabulary: int
    """Tokens of its byte-level vocabulary."""
    context: int
    """Longest sequence, in tokens."""
    num_tokens: int
    """Tokens that it reads."""


TEACHER = Size(width=128, layers=4, vocabulary=2048, context=1024, num_tokens=2_000_000)
STUDENT = Size(width=64, layers=3, vocabulary=512, context=512, num_tokens=200_000)


def train_tokenizer(texts: Sequence[str], size: Size) -> "PreTrainedTokenizerFast":
    """A byte-level vocabulary: every text can be written with it, and comes back unchanged."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=size.context
    )


def answers(seed_tasks: Sequence[Example], rng: random.Random) -> tuple[str, str]:
    """An instruction and its answer."""
    seed = rng.choice(seed_tasks)
    return seed.instruction, seed.response


def requests(seed_tasks: Sequence[Example], topics: dict[str, str], rng: random.Random) -> tuple[str, str]:
    """A request for a new instruction with up to eight shots, and a seed that is not among them."""
    target, *shots = rng.sample(list(seed_tasks), rng.randint(2, 9))
    prompt = render_prompt(load_template("self_instruct"), [shot.instruction for shot in shots])
    return prompt, f"People ask about {topics[target.id]}.\n<instruction>{target.instruction}</instruction>"


def documents(
    seed_tasks: Sequence[Example], topics: dict[str, str], chat_template: ChatTemplate, context: int, rng: random.Random
) -> Iterator[Rendered]:
    """Endless reading for the teacher: half requests for instructions, half answers; those that fit the context."""
    for number in itertools.count():
        question, answer = answers(seed_tasks, rng) if number % 2 else requests(seed_tasks, topics, rng)
        messages: list[Message] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rendered = chat_template.render(messages)
        if len(rendered.input_ids) <= context:
            yield rendered


def pretrain(reading: Iterator[Rendered], tokenizer: "PreTrainedTokenizerFast", size: Size) -> "LlamaForCausalLM":
    """A Llama that has read so many tokens; its loss is taken on responses only, as in fine-tuning.

    The prompts hold the seeds over and over: with a loss on them, the model would know the seeds by heart.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.width,
            intermediate_size=2 * size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=4,
            max_position_embeddings=size.context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    peaks = {torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0): 0.02, torch.optim.AdamW(others, lr=4e-3): 4e-3}
    done, shown, started = 0, 0.0, time.perf_counter()
    while done < size.num_tokens:
        batch = list(itertools.islice(reading, 16))
        loss = backward(model, batch)
        progress = done / size.num_tokens
        for optimizer, peak in peaks.items():
            optimizer.param_groups[0]["lr"] = peak * min(1.0, 20 * progress + 0.05, 2 * (1 - progress))
            optimizer.step()
            optimizer.zero_grad()
        done += sum(len(document.input_ids) for document in batch)
        if progress >= shown:
            print(f"  {done:>9} tokens, loss {loss:.3f}, {time.perf_counter() - started:.0f} s", flush=True)
            shown += 0.1
    return model.eval()


def backward(model: "LlamaForCausalLM", batch: Sequence[Rendered]) -> float:
    """Add the gradient of the mean loss over the responses of a batch, document by document; returns the loss."""
    num_trained = sum(sum(document.completion_mask) for document in batch)
    total = 0.0
    for document in batch:
        ids, trained = torch.tensor([document.input_ids]), torch.tensor(document.completion_mask)
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[0]
        logits = model.lm_head(hidden[trained[1:]])
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:][trained[1:]], reduction="sum") / num_trained
        loss.backward()
        total += loss.item()
    return total


def make_models(data: Path, weights: Path | None, out: Path, seed: int) -> dict[str, float]:
    """Write `teacher/` and `student/` where they are missing; returns the seconds that each took."""
    seed_tasks, _ = read_source(str(data / SOURCES["seed_tasks"]))
    rows = [json.loads(line) for line in (data / SOURCES["seed_tasks"]).read_text(encoding="utf-8").splitlines()]
    topics = {row["id"]: row["name"].replace("_", " ") for row in rows}
    seconds = {}
    for name, size in {"teacher": TEACHER, "student": STUDENT}.items():
        directory = out / name
        if directory.exists():
            continue
        print(f"making the {name}", flush=True)
        started = time.perf_counter()
        if name == "student" and weights is not None:
            shutil.copytree(weights, directory)
        else:
            # A directory that exists is a model that is whole.
            draft = out / f"{name}.part"
            torch.manual_seed(seed)
            rng = random.Random(f"{seed}/{name}")
            texts = [
                text for _ in range(500) for text in (*answers(seed_tasks, rng), *requests(seed_tasks, topics, rng))
            ]
            tokenizer = train_tokenizer(texts, size)
            chat_template = ChatTemplate(tokenizer, CHAT)
            pretrain(documents(seed_tasks, topics, chat_template, size.context, rng), tokenizer, size).save_pretrained(
                draft
            )
            tokenizer.save_pretrained(draft)
            draft.rename(directory)
        seconds[name] = time.perf_counter() - started
    return seconds


def run_recipe(data: Path, out: Path, overrides: Sequence[str]) -> float:
    """Run the recipe file as a user would; returns the seconds."""
    config = Path(__file__).parents[1] / "configs" / "real_text.yaml"
    command = [sys.executable, "-m", "montessori_pl", "fit", "--config", str(config), "--run", str(out / "run")]
    for name in ("student", "teacher"):
        command += [f"--{name}.backbone", str(out / name)]
    for role in ("seed_tasks", "reference", "test"):
        command += [f"--data.{role}", str(data / SOURCES[role])]
    for stage in ("warmup_data", "recorded"):
        command += [f"--recipe.{stage}.source", str(data / SOURCES[stage])]
    started = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run([*command, *overrides], env=environment, timeout=SECONDS_OF_A_RUN)
    if finished.returncode:
        sys.exit("the recipe did not finish, see above; the same command goes on from there")
    return time.perf_counter() - started


def results(data: Path, out: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """What came out, from the sources and the run directory."""
    run = out / "run"
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {
        "versions": versions(),
        "sources": {role: source_counts(str(data / source)) for role, source in SOURCES.items()},
        "data": {
            key: {name: value for name, value in metrics.items() if name not in ("diversity", "histogram")}
            for key, metrics in summary["data"].items()
        },
        "training": summary["training"],
        "students": summary["students"],
        "seconds": {**seconds, **{key: stage["seconds"] for key, stage in summary["stages"].items()}},
    }


def source_counts(source: str) -> dict[str, Any]:
    """Rows of a source that became examples, and the others by reason."""
    examples, rejections = read_source(source)
    return {
        "rows": len(examples) + len(rejections),
        "accepted": len(examples),
        "rejected": dict(Counter(rejection.reason for rejection in rejections)),
        "longest_characters": max(len(example.instruction) + len(example.response) for example in examples),
    }


def versions() -> dict[str, str]:
    """The versions that a repetition would want to know."""
    from importlib.metadata import version

    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "transformers", "lightning", "peft", "tokenizers")
    }


def main() -> None:
    """Make the models, run the recipe, say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of the public data, see above")
    parser.add_argument("--weights", type=Path, help="a pretrained checkpoint for the student")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/real_text"), help="where everything is written")
    parser.add_argument("--seed", type=int, default=42, help="of the models")
    arguments, overrides = parser.parse_known_args()  # what is left goes to the recipe
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # it warns of every text that is too long before we leave it out
    arguments.out.mkdir(parents=True, exist_ok=True)
    seconds = make_models(arguments.data, arguments.weights, arguments.out, arguments.seed)
    seconds["recipe"] = run_recipe(arguments.data, arguments.out, overrides)
    found = results(arguments.data, arguments.out, seconds)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (arguments.out / "results.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
