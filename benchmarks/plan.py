"""What `fit --dry_run` plans beside what a run takes: peak memory and CPU time of a training, with one thread.

    python benchmarks/plan.py [--smollm2 MODEL] [--runs RUN ...]

Each case is a recipe of one training and one evaluation on recorded examples. It is planned and run, each in a process
of its own, which has the program's libraries loaded already; the peak is the largest resident set that the system saw.
Cases: the classroom's student with all weights, a random Llama of 97 million parameters with an adapter and with all
weights, and, where it is named, SmolLM2-135M-Instruct with an adapter and with all weights. Runs that have finished are
planned anew from their settings, and the tokens that their stages have read and written stand beside those planned.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))
from montessori_pl.cli.fit import main as fit
from montessori_pl.cli.fit import planned

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}[assistant] "
SIZES = {
    "vocab_size": 16_384,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "tie_word_embeddings": True,
}
"""Of the random model."""


@dataclass(frozen=True)
class Case:
    """A training that is planned and run."""

    name: str
    backbone: str
    all_weights: bool
    words: int
    """Of a response."""

    def recipe(self, directory: Path) -> Path:
        """Write it, with its examples."""
        responses = [" ".join(f"w{n + k}" for k in range(self.words)) for n in range(24)]
        rows = [{"instruction": f"say {n}", "response": response} for n, response in enumerate(responses)]
        examples = directory / "examples.jsonl"
        examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
        training = {"lr": 1e-4, "epochs": 1, "batch_size": 8, "max_length": 256}
        recorded = {"class_path": "RecordedExamples", "init_args": {"source": f"{examples}[:16]"}}
        trained = {"examples": "recorded", "training": training, "all_weights": self.all_weights}
        content = {
            "run": str(directory / "run"),
            "num_threads": 1,
            "student": {"class_path": "StudentModule", "init_args": {"backbone": self.backbone}},
            "generation": {"class_path": "TransformersBackend"},
            "data": {"seed_tasks": f"{examples}[:8]", "reference": f"{examples}[16:20]", "test": f"{examples}[20:]"},
            "trainer": {"accelerator": "cpu", "devices": 1, "logger": False},
            "recipe": {"recorded": recorded, "trained": {"class_path": "TrainStudent", "init_args": trained}},
        }
        path = directory / "recipe.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path


def random_model(directory: Path) -> str:
    """A Llama with a token for each word, whose weights are as they were drawn."""
    vocabulary = {name: number for number, name in enumerate(["<unk>", "</s>", *(f"w{n}" for n in range(16_000))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = TEMPLATE
    LlamaForCausalLM(LlamaConfig(**SIZES, eos_token_id=1, pad_token_id=1, bos_token_id=None)).save_pretrained(directory)
    fast.save_pretrained(directory)
    return str(directory)


def apart(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What some work returns in a process of its own, the peak of that process's memory in bytes, and its CPU time."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.close(reader)
        with os.fdopen(writer, "w") as file:
            json.dump(work(), file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"a process ended with {status}")
    return json.loads(said), usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime


def measure(case: Case) -> None:
    """Print one row."""
    with tempfile.TemporaryDirectory() as directory:
        path = str(case.recipe(Path(directory)))

        def plan() -> list[float]:
            found = planned(["fit", "--config", path, "--dry_run"]).resources["iteration_1/trained"]
            assert found.peak is not None
            return [found.peak.total, found.compute.seconds]

        (memory, seconds), _, _ = apart(plan)
        _, peak, took = apart(lambda: fit(["fit", "--config", path]))
    print(
        f"{case.name:<28} memory: {memory / 1e9:.2f} GB planned, {peak / 1e9:.2f} GB measured "
        f"({memory / peak - 1:+.0%}); time: {seconds:.1f} s planned, {took:.1f} s of one core measured, with loading",
        flush=True,
    )


def tokens(run: Path) -> None:
    """Print one row for a finished run: tokens of all its stages that write."""
    with tempfile.TemporaryDirectory() as directory:
        options = ["--run", str(Path(directory) / "run"), "--dry_run"]
        steps, _, _ = apart(
            lambda: [
                [step.key, sum(one.prompt_tokens for one in work), sum(one.completion_tokens for one in work)]
                for step in planned(["fit", "--config", str(run / "config.yaml"), *options]).steps
                if step.estimate is not None and (work := step.estimate.work)
            ]
        )
    said = {key: json.loads((run / key / "metrics.json").read_text()) for key, _, _ in steps}
    rows = [(read, written, said[key]) for key, read, written in steps if "generated_tokens" in said[key]]
    read, written = sum(one[0] for one in rows), sum(one[1] for one in rows)
    was_read, was_written = (sum(one[2][name] for one in rows) for name in ("prompt_tokens", "generated_tokens"))
    print(
        f"{run}: tokens of prompts: {read:,.0f} planned, {was_read:,} read ({read / was_read - 1:+.0%}); "
        f"of completions: {written:,.0f} planned, {was_written:,} written ({written / was_written - 1:+.0%})"
    )


def main() -> None:
    """The whole benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", metavar="MODEL", help="SmolLM2-135M-Instruct: a directory, or a GGUF file")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="finished runs; nothing else is then measured")
    options = parser.parse_args()
    for run in options.runs:
        tokens(run)
    if options.runs:
        return
    with tempfile.TemporaryDirectory() as directory:
        random = random_model(Path(directory))
        measure(Case("97M, adapter", random, all_weights=False, words=100))
        measure(Case("97M, all weights", random, all_weights=True, words=100))
    if options.smollm2:
        measure(Case("SmolLM2-135M, adapter", options.smollm2, all_weights=False, words=30))
        measure(Case("SmolLM2-135M, all weights", options.smollm2, all_weights=True, words=30))
    measure(Case("classroom, all weights", "classroom/student", all_weights=True, words=4))


if __name__ == "__main__":
    main()
