"""The setting of `benchmarks/influence.py`: a model that has learned something, its warm optimizer, probes, references.

On a processor the model is a Llama of eight million parameters that reads the classroom's tasks for a minute. Its head
is 7% of it, as in the models of the paper, so that logits weigh as much here as there. Examples are made long by
putting several tasks into one: their lengths are skewed, as those of real responses. References of about 200 tokens
that the original pads to 1,024 become five times as long; so do ours, about 50 tokens that are padded to 256.

Shapes: B examples, T tokens.
"""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from montessori_pl.batches.collate import collate
from montessori_pl.batches.encoding import encode_examples
from montessori_pl.classroom.tasks import DISTRACTORS, FAMILIES, SKILLS, sample_task
from montessori_pl.classroom.tokenizer import train_tokenizer
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.formats import load_source
from montessori_pl.influence import AdamW
from montessori_pl.models.loading import LoraSettings, ModelSource, attach_lora, load_chat_template, load_model

Batch = dict[str, Tensor]
GROUP = 4
"""Probes that share a prompt."""


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    name: str
    """How the setting is called."""
    width: int = 256
    """Hidden size."""
    inner: int = 768
    """Width between the two halves of a feed-forward block."""
    layers: int = 8
    """Number of transformer blocks."""
    heads: int = 4
    """Attention heads."""
    key_heads: int = 4
    """Heads of keys and values."""
    vocabulary: int = 2048
    """Rows of the embedding and of the head."""
    longest: int = 256
    """Tokens to which the original pads."""
    num_references: int = 96
    """Reference examples."""
    num_probes: int = 48
    """Probes, in groups of four."""
    num_calibration: int = 16
    """Further probes, on which `auto` chooses."""
    pretraining_steps: int = 56
    """Steps of reading, about 1,024 tokens each."""
    warmup_steps: int = 12
    """Steps of the LoRA warm-up, eight examples each."""


DEFAULT = Size("default")
TINY = Size("tiny", 32, 64, 2, 2, 2, 512, 128, 8, 8, 4, 30, 6)
SHAPES = {
    "tinyllama-1.1b": Size("tinyllama-1.1b", 2048, 5632, 22, 32, 4, 32000, 1024, 256, 16, 0, 0, 2),
    "llama-3-8b": Size("llama-3-8b", 4096, 14336, 32, 32, 8, 128256, 1024, 256, 8, 0, 0, 2),
    "tiny": Size("tiny", 32, 64, 4, 2, 2, 512, 128, 16, 8, 0, 0, 2),
}
"""Models with random weights, for a GPU; `tiny` tries the path without one."""


@dataclass
class Student:
    """A model with adapters, and what its warm-up has left in the optimizer."""

    model: nn.Module
    """The model in evaluation mode; only its adapters (or, without any, all of it) can be trained."""
    optimizer: torch.optim.AdamW
    """After the warm-up."""

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that move, in the order of the optimizer."""
        return [param for param in self.model.parameters() if param.requires_grad]

    def update(self, lr: float | None = None) -> AdamW:
        """The next step of the optimizer as a function."""
        names = [name for name, param in self.model.named_parameters() if param.requires_grad]
        return AdamW.from_optimizer_state(self.optimizer.state_dict(), names, lr)

    def copy(self) -> "Student":
        """An independent student in the same state."""
        model = copy.deepcopy(self.model)
        student = Student(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0))
        student.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        return student


@dataclass
class Setting:
    """What every method is given."""

    size: Size
    """How large it is."""
    lr: float
    """Learning rate of the probes."""
    base: Any
    """The model before its adapters."""
    student: Student
    """With adapters on all layers."""
    upper: Student
    """With adapters on the last quarter of the layers only."""
    references: list[Batch]
    """One row each, unpadded."""
    probes: list[Batch]
    """One row each, unpadded."""
    calibration: list[Batch]
    """The same, for `auto`."""
    warmup: list[Batch] = field(default_factory=list)
    """What the warm-up has read: batches of eight."""

    @property
    def groups(self) -> list[int]:
        """The prompt of each probe."""
        return [index // GROUP for index in range(len(self.probes))]

    def describe(self) -> str:
        """The sizes, in one paragraph."""
        lengths = [row["input_ids"].shape[1] for row in self.references]
        probes = [row["input_ids"].shape[1] for row in self.probes]
        parameters = sum(param.numel() for param in self.base.parameters())
        trained = sum(param.numel() for param in self.student.trained)
        head = self.size.width * self.size.vocabulary / parameters
        return (
            f"{self.size.name}: Llama of {parameters:,} parameters ({self.size.layers} layers, width "
            f"{self.size.width}, head {head:.1%}), LoRA r 8 on all linear layers ({trained:,} trained), AdamW with "
            f"warm moments, learning rate {self.lr:g}. {len(lengths)} references of {min(lengths)} to {max(lengths)} "
            f"tokens, mean {sum(lengths) / len(lengths):.0f}, which the original pads to {self.size.longest}; "
            f"{len(probes)} probes of mean {sum(probes) / len(probes):.0f} in groups of {GROUP}."
        )


def stack(rows: Sequence[Batch], width: int | None = None) -> Batch:
    """Rows (1, T) as one batch, padded on the right to the longest of them or to `width`."""
    width = width or max(row["input_ids"].shape[1] for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.cat([nn.functional.pad(r[name], (0, width - r[name].shape[1]), value=value) for r in rows])
        for name, value in fill.items()
    }


def make_setting(size: Size, seed: int, lr: float) -> Setting:
    """Train the model, attach and warm up its adapters, draw probes and references."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    chat_template = ChatTemplate(train_tokenizer(_texts(rng)), "auto")
    base = make_base(size)
    _train(base, [_reading(rng, chat_template, size) for _ in range(size.pretraining_steps)], 2e-3)
    base.requires_grad_(False)
    draw = _Draw(rng, chat_template, size)
    warmup = [stack([draw.probe() for _ in range(8)]) for _ in range(size.warmup_steps)]
    upper = range(size.layers - max(1, size.layers // 4), size.layers)
    return Setting(
        size,
        lr,
        base,
        adapted(base, None, warmup, lr),
        adapted(base, list(upper), warmup, lr),
        [draw.reference() for _ in range(size.num_references)],
        [draw.probe() for _ in range(size.num_probes)],
        [draw.probe() for _ in range(size.num_calibration)],
        warmup,
    )


def make_base(size: Size, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """A Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        vocab_size=size.vocabulary,
        max_position_embeddings=size.longest,
        use_cache=False,
        dtype=dtype,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)


def adapted(base: Any, layers: list[int] | None, warmup: Sequence[Batch], lr: float) -> Student:
    """The model with adapters on these layers, after the warm-up; the base stays as it is."""
    model = attach_lora(copy.deepcopy(base), LoraSettings(layers=layers))
    for param in model.parameters():
        if param.requires_grad:
            param.data = param.data.float()
    return Student(model, _train(model, warmup, lr))


def _train(model: Any, batches: Sequence[Batch], lr: float) -> torch.optim.AdamW:
    """One step for each batch; the optimizer afterwards."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
    optimizer.zero_grad()
    model.eval()
    return optimizer


def _texts(rng: random.Random) -> list[str]:
    return [" ".join(sample_task(rng, name)) for name in FAMILIES for _ in range(60)]


@dataclass
class _Draw:
    """Draws examples of skewed lengths."""

    rng: random.Random
    chat_template: ChatTemplate
    size: Size

    def reference(self) -> Batch:
        """Target skills, answered right."""
        return self._row([sample_task(self.rng, self.rng.choice(list(SKILLS))) for _ in range(self._num_tasks())])

    def probe(self) -> Batch:
        """As a teacher writes them: target skills and distractors, some answered wrong."""
        tasks = []
        kind = self.rng.choice((SKILLS, DISTRACTORS, FAMILIES))
        wrong = self.rng.random() < 0.3
        for _ in range(self._num_tasks()):
            question, answer = sample_task(self.rng, self.rng.choice(list(kind)))
            if wrong:
                words = answer.split()
                answer = " ".join(self.rng.choice(words) for _ in words)
            tasks.append((question, answer))
        return self._row(tasks)

    def _num_tasks(self) -> int:
        """From a skewed distribution: most examples are short."""
        most = self.size.longest // 16
        return min(most, max(1, round(self.rng.lognormvariate(1.4, 0.7) * self.size.longest / 256)))

    def _row(self, tasks: Sequence[tuple[str, str]]) -> Batch:
        """One example that asks for all of them and answers one after the other."""
        rendered = self.chat_template.render(
            [
                {"role": "user", "content": " and ".join(question for question, _ in tasks)},
                {"role": "assistant", "content": " . ".join(answer for _, answer in tasks)},
            ],
            self.size.longest,
        )
        return collate([rendered], 0) if any(rendered.completion_mask) else self._row(tasks[:-1])


def _reading(rng: random.Random, chat_template: ChatTemplate, size: Size) -> Batch:
    """About 1,024 tokens of pretraining: both kinds of examples end to end, trained on all their tokens."""
    draw = _Draw(rng, chat_template, size)
    ids: list[int] = []
    while len(ids) < 1024:
        ids += (draw.probe() if rng.random() < 0.3 else draw.reference())["input_ids"][0].tolist()
    rows = torch.tensor(ids[:1024]).view(-1, size.longest // 2)
    return {"input_ids": rows, "labels": rows, "attention_mask": torch.ones_like(rows)}


def random_setting(size: Size, dtype: torch.dtype, device: str, lr: float) -> Setting:
    """Random weights and tokens: nothing is learned, but everything costs what it costs."""
    torch.manual_seed(0)
    rng = random.Random(0)

    def row() -> Batch:
        """About 200 tokens, half of them trained on."""
        length = max(16, min(size.longest, round(rng.lognormvariate(5.15, 0.5) * size.longest / 1024)))
        ids = [rng.randrange(size.vocabulary) for _ in range(length)]
        rendered = Rendered(ids, [place >= length // 2 for place in range(length)])
        return {name: tensor.to(device) for name, tensor in collate([rendered], 0).items()}

    base = make_base(size, dtype, device).requires_grad_(False)
    warmup = [stack([row() for _ in range(2)]) for _ in range(size.warmup_steps)]
    student = _with_random_adapters(base, warmup, lr)
    rows = [row() for _ in range(size.num_references + size.num_probes)]
    return Setting(size, lr, base, student, student, rows[: size.num_references], rows[size.num_references :], [])


def _with_random_adapters(base: Any, warmup: Sequence[Batch], lr: float) -> Student:
    model = attach_lora(base, LoraSettings())
    for param in model.parameters():
        if param.requires_grad:
            param.data = param.data.float()
    with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
        return Student(model, _train(model, warmup, lr))


def real_setting(backbone: str, data: str, num_references: int, num_probes: int, longest: int, lr: float) -> Setting:
    """A pretrained model and examples of a file, as long as they are; nothing shares a prompt, groups are by chance."""
    source = ModelSource(backbone)
    chat_template, base = load_chat_template(source), load_model(source)
    examples = load_source(data).examples
    random.Random(0).shuffle(examples)
    rendered, _ = encode_examples(examples, chat_template, longest)
    rows = [collate([one], int(chat_template.tokenizer.pad_token_id)) for one in rendered]
    counts = {"references": num_references, "probes": num_probes, "calibration": 2 * GROUP, "warmup": 4 * 8}
    if len(rows) < sum(counts.values()):
        raise SystemExit(
            f"error: {data} has {len(rows)} examples within {longest} tokens; {sum(counts.values())} are needed"
        )
    parts = {name: [rows.pop() for _ in range(count)] for name, count in counts.items()}
    config: Any = base.config
    size = Size(
        *(Path(backbone).stem, config.hidden_size, config.intermediate_size, config.num_hidden_layers),
        *(config.num_attention_heads, config.num_key_value_heads, config.vocab_size, longest),
        *(num_references, num_probes, 2 * GROUP, 0, 4),
    )
    base.requires_grad_(False)
    warmup = [stack(parts["warmup"][start : start + 8]) for start in range(0, 32, 8)]
    upper = range(size.layers - max(1, size.layers // 4), size.layers)
    students = adapted(base, None, warmup, lr), adapted(base, list(upper), warmup, lr)
    return Setting(size, lr, base, *students, parts["references"], parts["probes"], parts["calibration"], warmup)


def trained_as_a_whole(setting: Setting, lr: float) -> Student:
    """The model without adapters, all of it trained, after a warm-up."""
    model = copy.deepcopy(setting.base).requires_grad_(True)
    return Student(model, _train(model, setting.warmup, lr))


def rounded_to_bfloat16(student: Student) -> Student:
    """A copy in float32 whose weights bfloat16 can hold."""
    student = student.copy()
    for param in student.model.parameters():
        param.data = param.data.bfloat16().float()
    return student


def in_float64(student: Student) -> Student:
    """A copy that computes in float64; the norms of Transformers would compute in float32 whatever they are given."""
    student = student.copy()
    model = student.model.double()
    for module in list(model.modules()):
        children: list[tuple[str, Any]] = list(module.named_children())
        for name, child in children:
            if type(child).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(len(child.weight), eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)
    for state in student.optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = state[name].double()
    return student
