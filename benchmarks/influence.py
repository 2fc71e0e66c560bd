"""Influence, compared: the original's loop, a simple loop done well, this package's methods and its peers.

    OMP_NUM_THREADS=1 python benchmarks/influence.py                # minutes on one core of a processor
    python benchmarks/influence.py --json                           # {method: {ratio, spearman, best_worst, peak_mb}}
    python benchmarks/influence.py --device cuda --shape tinyllama-1.1b         # random weights; also llama-3-8b
    python benchmarks/influence.py --backbone MODEL --data FILE --lr 1e-5       # a real model on real text

All methods score the same probes against the same references with the same model, in one process and in random order,
round after round; each round takes its own part of the probes. A *ratio* is the time per probe of the original's loop
over that of the method, as the median over rounds of the ratios within a round; on a processor, time is the process's
CPU time. *Agreement* is with the exact method, on all probes that both have scored. What a method computes once is
shown apart, and is also spread over 1,000 probes. The peer kronfluence is measured where it is installed:

    pip install --no-deps kronfluence einops einconv opt_einsum
"""

import argparse
import contextlib
import gc
import importlib.util
import json
import math
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from influence_methods import (
    Corrected,
    GradientProduct,
    Kronfluence,
    Less,
    OriginalLoop,
    Ours,
    Score,
    SimpleLoop,
    engine,
)
from influence_setting import (
    DEFAULT,
    GROUP,
    SHAPES,
    TINY,
    Batch,
    Setting,
    Size,
    Student,
    in_float64,
    make_setting,
    random_setting,
    real_setting,
    rounded_to_bfloat16,
    stack,
    trained_as_a_whole,
)

from montessori_pl.influence import Agreement, InfluenceScorer, agreement

ORIGINAL, SIMPLE, EXACT, FIRST_ORDER = "original", "simple loop", "exact", "first order"
UPPER_ORIGINAL, UPPER_SIMPLE = "original, upper quarter", "simple loop, upper quarter"
UPPER_EXACT = "exact, upper quarter"
AMORTIZED = 1000
"""Probes over which the table spreads what is computed once."""


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str
    """How it is called."""
    build: Callable[[], Score]
    """Does what is done once."""
    few: int | None = None
    """Probes of a round, for methods that take seconds for each; none for all."""
    plain: bool = False
    """Measures from the loss before the step, instead of from the loss after a step with zero gradient."""
    baseline: str = ORIGINAL
    """The original's loop on the same adapters."""
    simple: str = SIMPLE
    """The simple loop on the same adapters."""
    upon: str | None = None
    """The method whose work of once it needs, too."""
    truth: str = EXACT
    """The exact method on the same adapters."""


@dataclass
class Outcome:
    """What was seen of one method."""

    fixed: float = math.nan
    """Seconds that it takes once."""
    held: float = math.nan
    """Bytes of tensors that it keeps beyond the model."""
    peak: float = math.nan
    """Most bytes beyond the model, while it scores."""
    fixed_by_call: list[float] = field(default_factory=list)
    """Seconds that each call takes beside its probes, where a method cannot do it once."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of one probe, round by round."""
    scores: dict[int, float] = field(default_factory=dict)
    """By the number of the probe."""


class Clock:
    """Process CPU time on a processor; wall time, after all kernels, on a GPU."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def __call__(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


class Meter:
    """Peak of what tensors allocate inside `with meter:`, beyond what was there before."""

    peak: float = math.nan

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def __enter__(self) -> "Meter":
        if self.cuda:
            gc.collect()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            self._profile = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=False
            )
            self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated() - self._before
            return
        self._profile.__exit__(*error)
        events: Any = self._profile.profiler
        held = peak = 0
        for event in sorted(
            (event for event in events.kineto_results.events() if event.name() == "[memory]"),
            key=lambda event: event.start_ns(),
        ):
            held += event.nbytes()
            peak = max(peak, held)
        self.peak = peak


def tensor_bytes() -> int:
    """Bytes of all tensors that Python holds, each storage once."""
    gc.collect()
    storages: dict[int, int] = {}
    for item in gc.get_objects():
        # By the type itself: to ask lazy modules for their class would import them.
        if issubclass(type(item), torch.Tensor) and item.device.type != "meta":
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def methods(setting: Setting, few: int) -> list[Method]:
    """All rows, in the order of the table."""
    student, upper, references = setting.student, setting.upper, setting.references
    shared: list[InfluenceScorer] = []

    def first_order() -> InfluenceScorer:
        if not shared:
            shared.append(engine(setting, student, method="first_order"))
        return shared[0]

    def auto() -> Score:
        scorer = engine(setting, student)
        groups = [index // GROUP for index in range(len(setting.calibration))]
        scorer.calibrate([stack(setting.calibration)], groups)
        return Ours(scorer)

    longest = setting.size.longest
    rows = [
        Method(ORIGINAL, lambda: OriginalLoop(student.copy(), references, longest), few, plain=True),
        Method(SIMPLE, lambda: SimpleLoop(student.copy(), references), few, plain=True),
        Method(EXACT, lambda: Ours(engine(setting, student, method="exact"))),
        Method(FIRST_ORDER, lambda: Ours(first_order())),
        *(
            Method(f"corrected on {count}", _corrected(first_order, count), upon=FIRST_ORDER)
            for count in (4, 8, 16)
            if count < len(references)
        ),
        Method("auto", auto),
        Method("LESS, cosine", lambda: Less(student.copy(), references)),
        Method("LESS, product", lambda: Less(student.copy(), references, cosine=False)),
        Method("gradient product", lambda: GradientProduct(first_order()), upon=FIRST_ORDER),
    ]
    if importlib.util.find_spec("kronfluence"):
        rows.append(
            Method("kronfluence, EKFAC", lambda: Kronfluence(student, references, examples(setting), "ekfac")),
        )
    quarter: dict[str, Any] = {"baseline": UPPER_ORIGINAL, "simple": UPPER_SIMPLE, "truth": UPPER_EXACT}
    return [
        *rows,
        Method(UPPER_ORIGINAL, lambda: OriginalLoop(upper.copy(), references, longest), 1, plain=True, **quarter),
        Method(UPPER_SIMPLE, lambda: SimpleLoop(upper.copy(), references), 1, plain=True, **quarter),
        Method(UPPER_EXACT, lambda: Ours(engine(setting, upper, method="exact")), **quarter),
        Method("first order, upper quarter", lambda: Ours(engine(setting, upper, method="first_order")), **quarter),
    ]


def _corrected(first_order: Callable[[], InfluenceScorer], count: int) -> Callable[[], Score]:
    return lambda: Corrected(first_order(), count)


def examples(setting: Setting) -> list[Batch]:
    """What the warm-up has read, row by row."""
    return [
        {name: tensor[i : i + 1, :length] for name, tensor in batch.items()}
        for batch in setting.warmup
        for i, length in enumerate(batch["attention_mask"].sum(dim=1).tolist())
    ]


def measure(setting: Setting, rows: Sequence[Method], num_rounds: int, seed: int, device: str) -> dict[str, Outcome]:
    """Build every method, then round after round score a part of the probes by each, in random order."""
    clock, rng = Clock(device), random.Random(seed)
    outcomes = {method.name: Outcome() for method in rows}
    scores: dict[str, Score] = {}
    before = tensor_bytes()
    for method in rows:
        outcome, start = outcomes[method.name], clock()
        scores[method.name] = method.build()
        outcome.fixed = clock() - start
        after = tensor_bytes()
        outcome.held, before = after - before, after
        say(f"built {method.name}: {outcome.fixed:.2f} s")
    groups = math.ceil(len(setting.probes) / GROUP)
    for number in range(num_rounds):
        part = [i for i in range(len(setting.probes)) if i // GROUP * num_rounds // groups == number]
        for method in rng.sample(list(rows), len(rows)):
            outcome, score, chosen = outcomes[method.name], scores[method.name], part[: method.few]
            probes = [setting.probes[index] for index in chosen]
            start = clock()
            values = score(probes)
            outcome.seconds.append((clock() - start) / len(chosen))
            if isinstance(score, Kronfluence):
                # Each of its calls computes the query gradients, which another interface would do once.
                start = clock()
                score(probes[:1])
                of_one = clock() - start
                outcome.fixed_by_call.append(of_one)
                outcome.seconds[-1] = (outcome.seconds[-1] * len(chosen) - of_one) / (len(chosen) - 1)
            outcome.scores |= dict(zip(chosen, values, strict=True))
        say(f"round {number + 1} of {num_rounds}")
    for outcome in outcomes.values():
        outcome.fixed += statistics.median(outcome.fixed_by_call or [0.0])
    for method in rows:
        with Meter(device) as meter:
            scores[method.name](setting.probes[: method.few or 4])
        outcomes[method.name].peak = meter.peak
    found = scores.get("auto")
    if isinstance(found, Ours) and found.scorer.choice is not None:
        choice = found.scorer.choice
        say(f"\nauto chose: {choice.chosen.method}\n    {choice.reason}")
    return outcomes


def agreements(setting: Setting, rows: Sequence[Method], outcomes: dict[str, Outcome]) -> dict[str, Agreement]:
    """Each method with the exact one on the same adapters, on the probes that both have scored."""
    found = {}
    for method in rows:
        truth, scores = outcomes[method.truth].scores, outcomes[method.name].scores
        common = sorted(truth.keys() & scores.keys())
        gain = 0.0
        if method.plain:
            # The loops measure from the loss before the step; a common shift makes signs comparable.
            student = setting.student if method.truth == EXACT else setting.upper
            reduction = "examples" if method.name == method.simple else "batches_of_8"
            gain = engine(setting, student, method="exact", reduction=reduction).exact.null_gain
        found[method.name] = agreement(
            [scores[i] - gain for i in common], [truth[i] for i in common], [setting.groups[i] for i in common]
        )
    return found


def ratio(outcomes: dict[str, Outcome], method: str, baseline: str) -> float:
    """Median over rounds of the ratio of times per probe within a round."""
    pairs = zip(outcomes[baseline].seconds, outcomes[method].seconds, strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def print_methods(rows: Sequence[Method], outcomes: dict[str, Outcome], found: dict[str, Agreement]) -> None:
    """The main table."""
    say(
        f"\n| method | s per probe | x original | x simple loop | s once | x original over {AMORTIZED:,} | probes "
        "| pearson | spearman | sign | best | worst | MB kept | MB at peak |\n|---" + "|---:" * 13 + "|"
    )
    for method in rows:
        outcome, seen = outcomes[method.name], found[method.name]
        seconds = statistics.median(outcome.seconds)
        theirs = statistics.median(outcomes[method.baseline].seconds)
        fixed = outcome.fixed + (outcomes[method.upon].fixed if method.upon else 0.0)
        spread = theirs / (seconds + fixed / AMORTIZED)
        say(
            f"| {method.name} | {seconds:.4f} | {ratio(outcomes, method.name, method.baseline):.3g} "
            f"| {ratio(outcomes, method.name, method.simple):.3g} "
            f"| {fixed:.1f} | {spread:.3g} | {seen.count} | {seen.pearson:.4f} | {seen.spearman:.4f} "
            f"| {seen.sign:.2f} | {seen.best:.2f} | {seen.worst:.2f} | {outcome.held / 1e6:.0f} "
            f"| {outcome.peak / 1e6:.0f} |"
        )


def print_share(setting: Setting, outcomes: dict[str, Outcome]) -> None:
    """How much of the arithmetic that this machine can do the exact method uses."""
    peak = matmul_peak("cpu", "float32")
    parameters = sum(p.numel() for n, p in setting.base.named_parameters() if "embed_tokens" not in n)
    tokens = sum(row["input_ids"].shape[1] for row in setting.references)
    tokens += round(3 * statistics.mean(row["input_ids"].shape[1] for row in setting.probes))
    floor, seconds = 2 * parameters * tokens / peak, statistics.median(outcomes[EXACT].seconds)
    say(
        f"\nArithmetic of one exact probe: {tokens:,} tokens through {parameters:,} weights, {floor:.2f} s at the "
        f"measured {peak / 1e9:.0f} GFLOP/s of a float32 product; exact takes {seconds:.2f} s: {floor / seconds:.0%}."
    )


def learning_rates(setting: Setting, num_probes: int) -> None:
    """Agreement at other learning rates, from the same warm moments."""
    probes, groups = setting.probes[:num_probes], setting.groups[:num_probes]
    batch = stack(probes)
    counts = [count for count in (4, 8, 16) if count < len(setting.references)]
    names = [FIRST_ORDER, *(f"corrected on {count}" for count in counts)]
    say(f"\nAgreement with exact on {num_probes} probes: Spearman (sign, best, worst)\n")
    say("| learning rate | " + " | ".join(names) + " |\n|---:" + "|---" * len(names) + "|")
    for factor in (0.1, 10.0):
        scorer = engine(setting, setting.student, lr=setting.lr * factor, method="first_order")
        with scorer._measuring():
            truth = [influence.centred for influence in scorer.exact(batch)]
        methods: list[Score] = [Ours(scorer, num_probes), *(Corrected(scorer, count) for count in counts)]
        seen = [agreement(method(probes), truth, groups) for method in methods]
        cells = [f"{one.spearman:.4f} ({one.sign:.2f}, {one.best:.2f}, {one.worst:.2f})" for one in seen]
        say(f"| {setting.lr * factor:g} | " + " | ".join(cells) + " |")


def precision(setting: Setting, num_probes: int, num_references: int) -> None:
    """What arithmetic does to the scores; all start from the same weights, which bfloat16 can hold."""
    probes = setting.probes[:num_probes]
    part = replace(setting, references=setting.references[:num_references], probes=probes)
    say(
        f"\nAgreement with float64 on {num_probes} probes and {num_references} references, plain influence: Spearman / "
        "sign\n\n| arithmetic | adapters, learning rate "
        f"{setting.lr:g} | all parameters, learning rate 5e-06 |\n|---|---:|---:|"
    )
    columns = [
        _arithmetics(part, rounded_to_bfloat16(setting.student), setting.lr),
        _arithmetics(part, rounded_to_bfloat16(trained_as_a_whole(setting, 5e-6)), 5e-6),
    ]
    for name in columns[0]:
        cells = [column.get(name, "") for column in columns]
        say(f"| {name} | " + " | ".join(cells) + " |")


def _arithmetics(part: Setting, student: Student, lr: float) -> dict[str, str]:
    """Spearman and sign agreement with float64, by arithmetic."""

    def by_engine(one: Student, method: str = "exact") -> list[float]:
        scorer = engine(part, one, lr=lr, method=method)
        return [influence.plain for influence in scorer(stack(part.probes))]

    def by_loop(one: Student, autocast: bool = False) -> list[float]:
        for group in one.optimizer.param_groups:
            group["lr"] = lr
        return SimpleLoop(one, part.references, autocast)(part.probes)

    adapters = any("lora_" in name for name, _ in student.model.named_parameters())
    found: dict[str, Callable[[], list[float]]] = {
        "bfloat16 weights, moments and step (as the original)": lambda: by_loop(_cast(student.copy(), torch.bfloat16)),
        "bfloat16 autocast over float32 weights and step": lambda: by_loop(student.copy(), autocast=True),
        "bfloat16 base, float32 adapters, exact": lambda: by_engine(_base_in_bfloat16(student.copy())),
        "bfloat16 base, float32 adapters, first order": lambda: by_engine(
            _base_in_bfloat16(student.copy()), "first_order"
        ),
        "float32, exact": lambda: by_engine(student),
        "float32, first order": lambda: by_engine(student, "first_order"),
    }
    truth = by_engine(in_float64(student))
    cells = {}
    for name, compute in found.items():
        if "adapters" in name and not adapters:
            continue
        seen = agreement(compute(), truth, part.groups)
        cells[name] = f"{seen.spearman:.4f} / {seen.sign:.2f}"
    return cells


def _cast(student: Student, dtype: torch.dtype) -> Student:
    """Weights and moments in another precision, in place."""
    student.model.to(dtype)
    for state in student.optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = state[name].to(dtype)
    return student


def _base_in_bfloat16(student: Student) -> Student:
    """Frozen weights in half precision, in place."""
    for param in student.model.parameters():
        if not param.requires_grad:
            param.data = param.data.bfloat16()
    return student


def memory(setting: Setting, device: str, names: Sequence[str], batch_tokens: Sequence[int]) -> None:
    """Peak memory beyond the model of building and scoring, for two numbers of references and two of probes."""
    say("\nPeak memory beyond the model while building and scoring, MB\n")
    # The same examples again and again: only their number differs.
    rows = setting.references[:12]
    probe = min(setting.probes, key=lambda row: row["input_ids"].shape[1])
    counts = [(r, p) for r in (4, 8) for p in (2, 4)]
    heads = [f"{len(rows) * r} references, {p} probes" for r, p in counts]
    say("| method | tokens of a batch | " + " | ".join(heads) + " |\n|---" + "|---:" * 5 + "|")
    for name in names:
        for tokens in batch_tokens:
            cells = []
            for r, p in counts:
                how: dict[str, Any] = {"method": name, "batch_tokens": tokens, "sample": 4}
                with Meter(device) as meter:
                    Ours(engine(setting, setting.student, references=rows * r, **how), at_once=2)([probe] * p)
                cells.append(f"{meter.peak / 1e6:.0f}")
            say(f"| {name.replace('_', ' ')} | {tokens:,} | " + " | ".join(cells) + " |")


def on_gpu(setting: Setting, device: str, num_rounds: int, original: bool) -> dict[str, dict[str, float | None]]:
    """Seconds per probe on random weights, beside what the arithmetic needs at the measured matmul peaks."""
    peaks = {name: matmul_peak(device, name) for name in ("float32", "tf32", "bfloat16")}
    say("matmul peak, TFLOP/s: " + ", ".join(f"{name} {peak / 1e12:.4g}" for name, peak in peaks.items()))
    parameters = sum(p.numel() for n, p in setting.student.model.named_parameters() if "embed_tokens" not in n)
    tokens = {
        ORIGINAL: (len(setting.references) + 3) * setting.size.longest,
        EXACT: sum(row["input_ids"].shape[1] for row in [*setting.references, *setting.probes[:1] * 3]),
    }
    mean = statistics.mean(row["input_ids"].shape[1] for row in setting.probes)
    tokens[FIRST_ORDER] = round(3 * mean)
    wanted = [ORIGINAL, EXACT, FIRST_ORDER, "corrected on 4", "corrected on 8", "corrected on 16"]
    rows = [method for method in methods(setting, 1) if method.name in wanted]
    rows = [replace(method, few=1) if method.name == EXACT else method for method in rows]
    if not original:
        rows = rows[1:]
    elif setting.student.trained[0].is_cuda:
        # A copy would need the memory of a second model; the loop restores what it moves.
        rows[0] = replace(
            rows[0], build=lambda: OriginalLoop(setting.student, setting.references, setting.size.longest)
        )
    outcomes = measure(setting, rows, num_rounds, 0, device)
    say(
        "\n| method | s per probe | x original | s once | tokens per probe "
        "| share of the float32 / tf32 / bfloat16 peak | MB kept | MB at peak |\n|---" + "|---:" * 7 + "|"
    )
    result: dict[str, dict[str, float | None]] = {}
    for method in rows:
        outcome = outcomes[method.name]
        seconds = statistics.median(outcome.seconds)
        count = tokens.get(method.name, tokens[FIRST_ORDER])
        if method.name.startswith("corrected"):
            references = sum(row["input_ids"].shape[1] for row in setting.references) / len(setting.references)
            count += round(int(method.name.split()[-1]) * references)
        shares = " / ".join(f"{2 * parameters * count / seconds / peak:.1%}" for peak in peaks.values())
        speed = ratio(outcomes, method.name, ORIGINAL) if original else None
        say(
            f"| {method.name} | {seconds:.4f} | {'' if speed is None else f'{speed:.3g}'} | {outcome.fixed:.1f} "
            f"| {count:,} | {shares} | {outcome.held / 1e6:.0f} | {outcome.peak / 1e6:.0f} |"
        )
        result[method.name] = {"ratio": speed, "spearman": None, "best_worst": None, "peak_mb": outcome.peak / 1e6}
    return result


def matmul_peak(device: str, name: str) -> float:
    """FLOP/s of a large square product in this arithmetic."""
    size = 8192 if device == "cuda" else 512
    clock = Clock(device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if name == "bfloat16" else torch.float32)
        times = []
        for _ in range(8):
            start = clock()
            for _ in range(4):
                a @ a
            times.append((clock() - start) / 4)
        return 2 * size**3 / min(times[2:])
    finally:
        torch.set_float32_matmul_precision(before)


def summary(
    rows: Sequence[Method], outcomes: dict[str, Outcome], found: dict[str, Agreement]
) -> dict[str, dict[str, float | None]]:
    """The object of `--json`; `best_worst` is the lesser of both shares, null where groups are too small."""
    return {
        method.name: {
            "ratio": ratio(outcomes, method.name, method.baseline),
            "spearman": _number(found[method.name].spearman),
            "best_worst": _number(min(found[method.name].best, found[method.name].worst)),
            "peak_mb": outcomes[method.name].peak / 1e6,
        }
        for method in rows
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def say(text: str) -> None:
    """Print a line, at once."""
    print(text, file=_report[0], flush=True)


_report: list[Any] = [sys.stdout]
"""Where the report goes: with `--json`, standard output is the object alone."""


@contextlib.contextmanager
def reporting_to(stream: Any) -> Iterator[None]:
    """The report goes elsewhere inside."""
    before, _report[0] = _report[0], stream
    try:
        yield
    finally:
        _report[0] = before


def compared(setting: Setting, seed: int, num_rounds: int, few: int) -> dict[str, dict[str, float | None]]:
    """All methods in one setting on a processor, and their table."""
    rows = methods(setting, few)
    outcomes = measure(setting, rows, num_rounds, seed, "cpu")
    found = agreements(setting, rows, outcomes)
    print_methods(rows, outcomes, found)
    print_share(setting, outcomes)
    return summary(rows, outcomes, found)


def run(size: Size, seed: int, lr: float, num_rounds: int, few: int) -> dict[str, dict[str, float | None]]:
    """The comparison on a processor: all tables, the last of them cut short for the tiny size."""
    start = time.process_time()
    setting = make_setting(size, seed, lr)
    say(setting.describe() + f" Made in {time.process_time() - start:.0f} s.\n")
    result = compared(setting, seed, num_rounds, few)
    learning_rates(setting, min(16, len(setting.probes)))
    precision(setting, min(12, len(setting.probes)), min(16, len(setting.references)))
    memory(setting, "cpu", *((("exact",), (256,)) if size is TINY else (("exact", "first_order"), (256, 1024))))
    say(f"\nAll of it took {time.process_time() - start:.0f} s of CPU time.")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one object; the report goes to standard error")
    parser.add_argument("--tiny", action="store_true", help="a model that learns nothing, to try the script")
    parser.add_argument("--rounds", type=int, default=3, help="how often each method is timed")
    parser.add_argument("--few", type=int, default=2, help="probes of a round for the loops")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate of the probes")
    parser.add_argument("--seed", type=int, default=0, help="of texts, weights and order")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where the model is")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape, times and memory only")
    parser.add_argument("--backbone", help="a pretrained model: a directory, or a GGUF file")
    parser.add_argument("--data", help="examples in any format that recipes read, with --backbone")
    parser.add_argument("--references", type=int, default=32, help="reference examples, with --backbone")
    parser.add_argument("--probes", type=int, default=32, help="probes, with --backbone")
    parser.add_argument("--longest", type=int, default=512, help="most tokens of an example, with --backbone")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the base, with --shape"
    )
    parser.add_argument("--without-original", action="store_true", help="leave the original's loop out, with --shape")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and options.shape is None:
        parser.error("--device cuda needs --shape")
    if (options.backbone is None) != (options.data is None):
        parser.error("--backbone and --data belong together")
    if options.device == "cpu":
        torch.set_num_threads(1)
    with reporting_to(sys.stderr if options.json else sys.stdout):
        say(f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}")
        if options.shape is not None:
            dtype = getattr(torch, options.dtype)
            setting = random_setting(SHAPES[options.shape], dtype, options.device, options.lr)
            say(setting.describe() + f" Random weights, base in {options.dtype}.")
            result = on_gpu(setting, options.device, options.rounds, not options.without_original)
        elif options.backbone is not None:
            sizes = options.references, options.probes, options.longest
            setting = real_setting(options.backbone, options.data, *sizes, options.lr)
            say(setting.describe() + "\n")
            result = compared(setting, options.seed, options.rounds, options.few)
        else:
            result = run(TINY if options.tiny else DEFAULT, options.seed, options.lr, options.rounds, options.few)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
