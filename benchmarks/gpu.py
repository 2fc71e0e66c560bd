"""What this program does on a GPU that is at hand for twenty minutes: prepared, it only has to be started.

    python benchmarks/gpu.py --gpu H200 --json gpu.json     # what is found is written at once; `--parts` takes some
    python benchmarks/gpu.py --dry_run                      # all parts in miniature on a CPU, to see that they run

    training    SFT and DPO of models of random weights, in the shapes of TinyLlama-1.1B and Llama-3-8B: tokens in a
                second and peak memory, with what `fit --dry_run --gpus` plans beside each
    influence   seconds per probe and share of the measured matmul peak, beside the original's loop, in the same shapes
                (`benchmarks/influence.py --shape`)
    recipes     the classroom's recipe, and the same with a student in the shape of Qwen2.5-0.5B, from their first stage
                to their last: seconds of each stage

Each measurement is a process of its own with a limit of its own, 19 minutes in all: one that fails or takes too long
costs no other. It was never run on a GPU. What random weights write is not looked at; times and memory do not depend on
it.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from montessori_pl.cli.fit import planned
from montessori_pl.models.loading import load_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "TinyLlama-1.1B": {
        **{"model_type": "llama", "vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 5632},
        **{"num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4},
    },
    "Llama-3-8B": {
        **{"model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336},
        **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
    },
    "Qwen2.5-0.5B": {
        **{"model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864},
        **{"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
    },
}
MINIATURE = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2} | {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
"""What replaces a shape's sizes in a dry run."""
INFLUENCE_SHAPES = {"TinyLlama-1.1B": "tinyllama-1.1b", "Llama-3-8B": "llama-3-8b"}
PEAK = "peak bytes:"
PROGRAM = f"""
import resource, sys, torch
from montessori_pl.__main__ import main
main(sys.argv[1:])
gpu = torch.cuda.is_available()
print({PEAK!r}, torch.cuda.max_memory_reserved() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
"""The program, which says at its end how much memory it took."""
WORDS = ("copy", "first", "give", "last", "of", "remove", "repeat", "say", "swap", "the", "what", "write")
"""Words of the classroom's tokenizer."""


class StepClock(Callback):
    """Counts the tokens of a training's batches, and the seconds of all but the first of them.

    Args:
        path: where the counts are written when the training ends.
    """

    only_observes = True

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.tokens = self.counted = 0
        self.began = self.seconds = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """Count, and begin with the second batch."""
        tokens = int(batch["attention_mask"].sum())
        self.tokens += tokens
        if not self.began and batch_idx:
            self.began = _now()
        if self.began:
            self.counted += tokens

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Look at the clock; what comes behind the last batch, such as saving, does not count."""
        if self.began:
            self.seconds = _now() - self.began

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the counts."""
        self.path.write_text(json.dumps({"tokens": self.tokens, "tokens_per_second": self.counted / self.seconds}))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Options:
    """How all parts are measured."""

    gpu: str
    """Name of the GPU, as `--gpus` takes it."""
    dry_run: bool
    """In miniature, on a CPU."""

    @property
    def trainer(self) -> dict[str, Any]:
        """The section of a recipe."""
        return {"accelerator": "cpu" if self.dry_run else "gpu", "devices": 1, "logger": False}

    @property
    def planning(self) -> list[str]:
        """More of the command line of a dry run."""
        return [] if self.dry_run else ["--gpus", f"1x{self.gpu}"]


@dataclass(frozen=True)
class Training:
    """A training of random weights, planned and measured."""

    shape: str
    task: str
    """`sft` of a student, or `dpo` of a teacher."""
    adapter: bool
    """Whether an adapter is trained on a base in bfloat16; otherwise all weights, in mixed precision."""
    batch_size: int
    words: int = 500
    """Of the longest response."""

    @property
    def name(self) -> str:
        """For a row."""
        return f"{self.shape}, {self.task.upper()}, {'adapter' if self.adapter else 'all weights'}"

    def recipe(self, directory: Path, options: Options) -> Path:
        """Write it, with its model and examples: six steps."""
        save_model(directory / "model", self.shape, options)
        rows = self.rows(6 * self.batch_size, min(self.words, 20) if options.dry_run else self.words)
        examples = directory / "examples.jsonl"
        examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
        base = {"backbone": str(directory / "model"), "chat_template": "plain"}
        if self.adapter and not options.dry_run:
            base["base_dtype"] = "bfloat16"
        training = {"lr": 1e-5, "epochs": 1, "batch_size": self.batch_size, "max_length": 1024}
        trainer = {
            **options.trainer,
            "callbacks": [{"class_path": "gpu.StepClock", "init_args": {"path": str(clock_of(directory))}}],
        }
        if not self.adapter and not options.dry_run:
            trainer["precision"] = "bf16-mixed"
        content = {
            "run": str(directory / "run"),
            "student": {"class_path": "StudentModule", "init_args": base},
            "teacher": {"class_path": "TeacherDPOModule", "init_args": base},
            "generation": {"class_path": "TransformersBackend"},
            "data": {"seed_tasks": "classroom/seed_tasks", "reference": "classroom/reference"},
            "trainer": trainer,
            "recipe": {"recorded": {"class_path": "RecordedExamples", "init_args": {"source": str(examples)}}}
            | self.stages(training),
        }
        path = directory / "recipe.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def stages(self, training: Mapping[str, Any]) -> dict[str, Any]:
        """What trains, and what that needs; the last one is measured."""
        if self.task == "sft":
            settings = {"examples": "recorded", "training": training, "all_weights": not self.adapter}
            return {"trained": {"class_path": "TrainStudent", "init_args": settings}}
        scoring = {"examples": "recorded", "student": "base", "signal": {"class_path": "callbacks.RandomSignal"}}
        pairing = {"examples": "recorded", "scores": "scores", "rule": "best_worst"}
        aligning = {"pairs": "preferences", "training": training, "monitor": None}
        return {
            "scores": {"class_path": "ScoreExamples", "init_args": scoring},
            "preferences": {"class_path": "BuildPreferences", "init_args": pairing},
            "trained": {"class_path": "AlignTeacher", "init_args": aligning},
        }

    def rows(self, count: int, words: int) -> Iterator[dict[str, Any]]:
        """Examples of all lengths; for preferences two completions of each prompt, in our own format."""
        rng = random.Random(0)
        for number in range(count * (2 if self.task == "dpo" else 1)):
            text = " ".join(rng.choices(WORDS, k=rng.randint(words // 4, words)))
            row = {"id": f"row-{number}", "instruction": f"say {' '.join(rng.choices(WORDS, k=20))}", "response": text}
            if self.task == "dpo":
                prompt = f"prompt-{number // 2}"
                row |= {"prompt_id": prompt, "prompt": f"write {prompt}", "completion": text}
            yield row


def save_model(directory: Path, shape: str, options: Options) -> None:
    """Random weights, in bfloat16 on a GPU, with the classroom's tokenizer."""
    sizes = SHAPES[shape] | (MINIATURE if options.dry_run else {})
    config = AutoConfig.for_model(**sizes, max_position_embeddings=2048)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if options.dry_run else torch.bfloat16)
    try:
        with torch.device("cpu" if options.dry_run else "cuda"):
            AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    finally:
        torch.set_default_dtype(before)
    load_tokenizer("classroom/student").save_pretrained(directory)


def clock_of(directory: Path) -> Path:
    """Where `StepClock` writes."""
    return directory / "clock.json"


TRAININGS = (
    Training("TinyLlama-1.1B", "sft", adapter=False, batch_size=8),
    Training("TinyLlama-1.1B", "dpo", adapter=True, batch_size=4),
    Training("Llama-3-8B", "sft", adapter=True, batch_size=8),
    Training("Llama-3-8B", "dpo", adapter=True, batch_size=4),
)
SMALLER = {
    "recipe.probing_data.num_prompts": 200,
    "recipe.training_data.num_examples": 500,
    "recipe.influence_after.max_examples": 100,
}
"""Of a recipe, so that it ends in minutes."""
TINY = dict.fromkeys(SMALLER, 24) | {"recipe.warmup_data.num_examples": 24}


def train(options: Options, training: Training) -> dict[str, Any]:
    """One row: what is planned, and what was measured."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = training.recipe(directory, options)
        plan = planned(["fit", "--config", str(path), "--dry_run", *options.planning]).resources["iteration_1/trained"]
        assert plan.peak is not None
        peak = program(["fit", "--config", str(path)], directory)
        clock = json.loads(clock_of(directory).read_text())
    return {
        "tokens_per_second": clock["tokens_per_second"],
        "seconds": clock["tokens"] / clock["tokens_per_second"],
        "planned_seconds": plan.compute.seconds,
        "peak": peak,
        "planned_peak": plan.peak.total,
    }


def program(arguments: Sequence[str], directory: Path) -> int:
    """Run the program; returns the peak of its memory, in bytes.

    Raises:
        SystemExit: it has failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=directory)
    if run.returncode:
        raise SystemExit((run.stdout + run.stderr)[-2000:])
    return int(next(line for line in reversed(run.stdout.splitlines()) if line.startswith(PEAK)).split()[-1])


def whole_recipe(options: Options, shape: str) -> dict[str, Any]:
    """Seconds of each stage of `iter1.yaml`, planned and measured, with the classroom's student or another."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        settings: dict[str, Any] = {
            "run": directory / "run",
            **{f"trainer.{key}": str(value).lower() for key, value in options.trainer.items()},
            **(TINY if options.dry_run else SMALLER),
        }
        if shape:
            save_model(directory / "model", shape, options)
            settings |= {"student.backbone": directory / "model", "student.chat_template": "plain"}
        command = [
            "fit",
            "--config",
            "iter1.yaml",
            *(str(part) for key, value in settings.items() for part in (f"--{key}", value)),
        ]
        plan = planned([*command, "--dry_run", *options.planning])
        peak = program(command, directory)
        manifest = json.loads((directory / "run" / "manifest.json").read_text())["stages"]
        summary = json.loads((directory / "run" / "summary.json").read_text())
    seconds = {key.split("/")[1]: entry["seconds"] for key, entry in manifest.items()}
    expected = {key.split("/")[1]: one.compute.seconds for key, one in plan.resources.items()}
    return {
        "stages": {key: [expected.get(key), took] for key, took in seconds.items()},
        "peak": peak,
        "students": summary["students"],
    }


def influence(options: Options, shape: str) -> dict[str, Any]:
    """What `benchmarks/influence.py` says."""
    name, device = ("tiny", "cpu") if options.dry_run else (INFLUENCE_SHAPES[shape], "cuda")
    command = [sys.executable, str(Path(__file__).with_name("influence.py")), "--shape", name, "--device", device]
    run = subprocess.run([*command, "--rounds", "1"], capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(run.stderr[-2000:])
    return {"said": run.stdout}


PARTS: dict[str, tuple[int, Any]] = {
    **{f"training: {one.name}": (120, lambda options, one=one: train(options, one)) for one in TRAININGS},
    **{f"influence: {one}": (150, lambda options, one=one: influence(options, one)) for one in INFLUENCE_SHAPES},
    "recipe: classroom": (150, lambda options: whole_recipe(options, "")),
    "recipe: student like Qwen2.5-0.5B": (200, lambda options: whole_recipe(options, "Qwen2.5-0.5B")),
}
"""By name: how many seconds it may take, and what is measured."""


def show(console: Console, found: Mapping[str, Any]) -> None:
    """Print what was found, in tables."""
    table = Table("training", "tokens/s", "seconds planned", "measured", "peak planned, GB", "measured")
    for name, row in found.items():
        if "tokens_per_second" in row:
            numbers = f"{row['tokens_per_second']:,.0f}", f"{row['planned_seconds']:.1f}", f"{row['seconds']:.1f}"
            table.add_row(name, *numbers, f"{row['planned_peak'] / 1e9:.2f}", f"{row['peak'] / 1e9:.2f}")
    console.print(table)
    for name, row in found.items():
        if "stages" in row:
            stages = Table(name, "seconds planned", "measured")
            for stage, (expected, took) in row["stages"].items():
                stages.add_row(stage, "" if expected is None else f"{expected:.1f}", f"{took:.1f}")
            console.print(stages)
        console.print(row.get("said", row.get("failed", "")), markup=False)


def main() -> None:
    """All parts in turn, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="H200", help="which GPU this is, as --gpus takes it: what is planned for")
    parser.add_argument("--dry_run", action="store_true", help="in miniature, on a CPU")
    parser.add_argument("--json", type=Path, help="write what was found there, after each part")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="only these")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    options = Options(given.gpu, given.dry_run)
    if given.part:
        print(json.dumps(PARTS[given.part][1](options)))
        return
    console, found = Console(width=120, highlight=False), dict[str, Any]()
    where = "a CPU, in miniature" if options.dry_run else torch.cuda.get_device_name()
    console.print(f"{where}; torch {torch.__version__}")
    for name in given.parts:
        start = time.monotonic()
        found[name] = measured(name, options)
        console.print(f"{name}: {'failed' if 'failed' in found[name] else 'done'} in {time.monotonic() - start:.0f} s")
        if given.json:
            given.json.write_text(json.dumps({"options": asdict(options), "where": where, "found": found}, indent=1))
    show(console, found)
    if any("failed" in row for row in found.values()):
        sys.exit(1)


def measured(name: str, options: Options) -> dict[str, Any]:
    """What a part finds in a process of its own, or why it has found nothing."""
    command = [sys.executable, __file__, "--gpu", options.gpu, "--part", name]
    try:
        run = subprocess.run(
            [*command, *(["--dry_run"] if options.dry_run else [])],
            capture_output=True,
            text=True,
            timeout=PARTS[name][0],
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"{name} took more than {PARTS[name][0]} s"}
    if run.returncode:
        return {"failed": f"{name}: {run.stderr[-2000:]}"}
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
