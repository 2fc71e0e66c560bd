"""How fast is training, and what memory does it take, beside TRL's trainers on the same tokens?

    OMP_NUM_THREADS=1 python benchmarks/training.py --model DIR --data open_assistant/en_100_tree.jsonl --rows 64

Each contender trains in a process of its own, in turn, `--repeats` times; the medians and the largest resident memory
are printed, with the losses of every optimizer step. Seconds are those of the process on its cores, which other work
on the machine disturbs less than the clock.

    ours         `fit` of `TrainStudent` or of `AlignTeacher`, as a recipe calls it, with the default settings
    trl          TRL's `SFTTrainer` or `DPOTrainer` with its defaults: gradient checkpointing, random batches
    trl, plain   the same without gradient checkpointing
    trl, order   the same, in the order of ours: for the losses, which must then be equal

The same token ids, labels, precision (float32), batch size, learning rate and LoRA (all linear layers but the head) for
all. The rows are conversations of OpenAssistant (github.com/LAION-AI/Open-Assistant): of each tree the prompt with its
best answer, and for DPO with its worst one beside it. `--model random` is a Llama of 50 million random weights with a
vocabulary of 128K, whose head is most of it.

`--task influence` measures probing instead: exact and first-order influence of 14 examples on 16 references.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer

from montessori_pl.batches.collate import collate, num_labels
from montessori_pl.batches.encoding import EncodedPair, encode_examples, encode_pairs
from montessori_pl.batches.samplers import EpochBatches, Sharing
from montessori_pl.batches.sources import DataSources
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.formats import read_source
from montessori_pl.data.records import PreferencePair
from montessori_pl.influence import AdamW, InfluenceScorer
from montessori_pl.losses import IGNORED
from montessori_pl.models.dpo import TeacherDPOModule
from montessori_pl.models.language_module import LanguageModule
from montessori_pl.models.loading import (
    LoraSettings,
    ModelSource,
    load_chat_template,
    load_model,
    load_tokenizer,
    make_trainable,
)
from montessori_pl.models.student import StudentModule
from montessori_pl.optim import TrainingSettings
from montessori_pl.run_directory.progress import Progress
from montessori_pl.stages.base import StageContext
from montessori_pl.stages.training.fit import TrainingData, fit
from montessori_pl.stages.training.preferences import pair_data

LORA = LoraSettings(r=16, alpha=32)
SEED = 5
LR = 2e-4
ORDERED = "trl, order"
CONTENDERS = ("ours", "trl", "trl, plain", ORDERED)
Result = dict[str, Any]


def rows(path: str, count: int, chat_template: ChatTemplate, max_length: int, task: str) -> list[Any]:
    """The first conversations that fit, encoded as ours encodes them."""
    if task == "sft":
        return encode_examples(read_source(path)[0], chat_template, max_length)[0][:count]
    pairs = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)["prompt"]
        ranked = sorted((one for one in prompt["replies"] if one.get("rank") is not None), key=lambda one: one["rank"])
        if len(ranked) > 1:
            best, worst = ranked[0], ranked[-1]
            ids = {"id": best["message_id"], "chosen_id": best["message_id"], "rejected_id": worst["message_id"]}
            texts = {"prompt": prompt["text"], "chosen": best["text"], "rejected": worst["text"]}
            pairs.append(PreferencePair(**ids, **texts, margin=1.0))
    return encode_pairs(pairs, chat_template, max_length)[:count]


def sft_data(items: Sequence[Rendered], batch_size: int, pad_id: int) -> TrainingData:
    """As `TrainStudent` makes it."""
    lengths, counts = [len(one.input_ids) for one in items], {"tokens": [num_labels(one) for one in items]}
    return TrainingData(items, lengths, batch_size, SEED, partial(collate, pad_id=pad_id), counts)


class Clock:
    """A moment, by the clock and by the time that the process has computed."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def since(self, began: "Clock") -> Result:
        """Seconds of both kinds."""
        return {"wall_seconds": self.wall - began.wall, "seconds": self.cpu - began.cpu}


class StepLosses(Callback):
    """Notes the loss of each optimizer step, and when steps begin and end."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._parts: list[float] = []
        self.began = self.ended = Clock()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = Clock()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        self._parts.append(float(outputs["loss"]) / trainer.accumulate_grad_batches)
        if trainer.global_step > len(self.losses):
            self.losses.append(sum(self._parts))
            self._parts = []
        self.ended = Clock()


def ours(arguments: argparse.Namespace, items: list[Any], chat_template: ChatTemplate) -> Result:
    """Train as a stage does."""
    steps = StepLosses()
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    with tempfile.TemporaryDirectory() as directory:

        def trainer(callbacks: Sequence[Callback] = (), **settings: Any) -> Trainer:
            return Trainer(callbacks=[steps, *callbacks], use_distributed_sampler=False, **quiet, **settings)

        context = StageContext(
            **{"key": "iteration_1/it", "name": "it", "iteration": 1, "directory": Path(directory)},
            **{"seed": SEED, "run_seed": SEED, "inputs": {}, "data": DataSources("none", "none")},
            **{"student": _never, "teacher": _never, "backend": _never, "trainer": trainer},
            progress=Progress(),
            log_distribution=lambda name, values: None,
        )
        training = TrainingSettings(
            lr=LR, epochs=arguments.epochs, batch_size=arguments.batch_size, schedule="constant", gradient_clip_val=None
        )
        module: LanguageModule
        if arguments.task == "sft":
            module = StudentModule(arguments.model, LORA, chat_template=arguments.chat_template)
            data = sft_data(items, arguments.batch_size, chat_template.tokenizer.pad_token_id)
        else:
            module = TeacherDPOModule(arguments.model, LORA, chat_template=arguments.chat_template)
            data = pair_data(items, chat_template, training, context)
        torch.manual_seed(SEED)
        fit(context, module, data, training)
    return {**steps.ended.since(steps.began), "losses": steps.losses}


def trl(arguments: argparse.Namespace, items: list[Any], chat_template: ChatTemplate) -> Result:
    """Train with TRL."""
    import datasets
    import trl as library

    plain = arguments.contender != "trl"
    settings: dict[str, Any] = {
        **{"output_dir": "/nonexistent", "save_strategy": "no", "report_to": "none", "disable_tqdm": True},
        **{"use_cpu": True, "bf16": False, "num_train_epochs": arguments.epochs, "learning_rate": LR, "seed": SEED},
        **{"per_device_train_batch_size": arguments.batch_size, "lr_scheduler_type": "constant", "max_grad_norm": 0.0},
        **{"logging_steps": 1, "gradient_checkpointing": not plain, "max_length": None},
    }
    if arguments.contender == ORDERED:
        lengths = [len(one.input_ids) for one in items] if arguments.task == "sft" else [_longer(one) for one in items]
        batches = EpochBatches(lengths, Sharing(arguments.batch_size), SEED)
        items = [items[index] for step in batches.steps_of(0) for index in step]
        settings["train_sampling_strategy"] = "sequential"
    torch.manual_seed(SEED)
    model = make_trainable(load_model(ModelSource(arguments.model)), LORA)
    tokenizer = chat_template.tokenizer
    trainer: Any
    if arguments.task == "sft":
        dataset = datasets.Dataset.from_list(
            [{"input_ids": list(one.input_ids), "labels": _labels(one)} for one in items]
        )
        trainer = library.SFTTrainer(
            model, library.SFTConfig(**settings), train_dataset=dataset, processing_class=tokenizer
        )
    else:
        rows = []
        for pair in items:
            start = pair.chosen.completion_mask.index(True)
            whole = list(pair.chosen.input_ids), list(pair.rejected.input_ids)
            rows.append(
                {"prompt_ids": whole[0][:start], "chosen_ids": whole[0][start:], "rejected_ids": whole[1][start:]}
            )
        texts = datasets.Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
        config = library.DPOConfig(**settings, beta=0.1)
        trainer = library.DPOTrainer(model, args=config, train_dataset=texts, processing_class=tokenizer)
        trainer.train_dataset = datasets.Dataset.from_list(rows)
    began = Clock()
    trainer.train()
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    return {**Clock().since(began), "losses": losses}


def influence(arguments: argparse.Namespace, chat_template: ChatTemplate) -> Result:
    """Exact and first-order influence of 14 examples on 16 references, each of at most 192 tokens."""
    items = rows(arguments.data, 30, chat_template, 192, "sft")
    torch.manual_seed(SEED)
    model = make_trainable(load_model(ModelSource(arguments.model)), LORA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1e-3)
    found: Result = {"losses": []}
    began = Clock()
    batches = [collate(some, chat_template.tokenizer.pad_token_id) for some in (items[:16], items[16:])]
    for method in ("exact", "first_order"):
        scorer = InfluenceScorer(model, AdamW(lr=LR), batches[:1], method=method)
        found["losses"] += [one.centred for one in scorer(batches[1])]
        found[method] = Clock().since(began)
    return {**found, **Clock().since(began)}


def one(arguments: argparse.Namespace) -> None:
    """What a process does, printed as JSON."""
    chat_template = load_chat_template(ModelSource(arguments.model, chat_template=arguments.chat_template))
    if arguments.task == "influence":
        result, tokens = influence(arguments, chat_template), 0
    else:
        items = rows(arguments.data, arguments.rows, chat_template, arguments.max_length, arguments.task)
        tokens = arguments.epochs * sum(_tokens(item) for item in items)
        result = (ours if arguments.contender == "ours" else trl)(arguments, items, chat_template)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({**result, "tokens": tokens, "peak_gb": round(peak, 2)}))


def make_random_model(directory: Path) -> None:
    """A Llama of 50 million weights, 33 million of them in its tied head, with the classroom's tokenizer."""
    config = transformers.LlamaConfig(
        **{"vocab_size": 128_000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 16},
        **{"num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True},
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    load_tokenizer("classroom/student").save_pretrained(directory)


def main() -> None:
    """Run all contenders in turn, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a local directory, or `random`")
    parser.add_argument("--data", required=True, help="en_100_tree.jsonl of OpenAssistant")
    parser.add_argument("--task", choices=["sft", "dpo", "influence"], default="sft")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chat-template", default="auto")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS))
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender is not None:
        one(arguments)
        return
    with tempfile.TemporaryDirectory() as directory:
        if arguments.model == "random":
            arguments.model, arguments.chat_template = directory, "plain"
            make_random_model(Path(directory))
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Print what each contender took."""
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}, transformers {transformers.__version__}")  # fmt: skip
    contenders = ["ours"] if arguments.task == "influence" else arguments.contenders
    found: dict[str, list[Result]] = {name: [] for name in contenders}
    for number in range(arguments.repeats):
        for name in contenders:
            if name == ORDERED and number:
                continue
            result = _in_a_process(arguments, name)
            found[name].append(result)
            print(f"{arguments.task} {name:12} {result['seconds']:7.1f} s  {result['peak_gb']:5.2f} GB", flush=True)
    for name, results in found.items():
        seconds = statistics.median(one["seconds"] for one in results)
        peak = max(one["peak_gb"] for one in results)
        print(f"median {name:12} {seconds:7.1f} s  {results[0]['tokens'] / seconds:6.1f} tokens/s  {peak:5.2f} GB")
        if "ours" in found and name != "ours":
            ratios = [one["seconds"] / own["seconds"] for one, own in zip(results, found["ours"], strict=False)]
            print(f"  seconds by ours: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print("  losses", " ".join(f"{one:.6g}" for one in results[0]["losses"]))


def _in_a_process(arguments: argparse.Namespace, contender: str) -> Result:
    options = {**vars(arguments), "contender": contender}
    command = [sys.executable, __file__]
    for name, value in options.items():
        if name not in ("contenders", "repeats"):
            command += [f"--{name.replace('_', '-')}", str(value)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{contender} failed:\n{run.stderr[-4000:]}")
    result: Result = json.loads(run.stdout.splitlines()[-1])
    return result


def _tokens(item: Any) -> int:
    sides = [item] if isinstance(item, Rendered) else [item.chosen, item.rejected]
    return sum(len(side.input_ids) for side in sides)


def _longer(pair: EncodedPair) -> int:
    return max(len(pair.chosen.input_ids), len(pair.rejected.input_ids))


def _labels(item: Rendered) -> list[int]:
    return [token if taken else IGNORED for token, taken in zip(item.input_ids, item.completion_mask, strict=True)]


def _never() -> Any:
    raise AssertionError("not needed")


if __name__ == "__main__":
    main()
