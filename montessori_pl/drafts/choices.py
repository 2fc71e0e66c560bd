"""What follows from models, files and machine: the numbers of a recipe."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

from montessori_pl.drafts.models import CAPABLE, LookedAt
from montessori_pl.drafts.texts import SHORT_ANSWER, Lengths, Texts
from montessori_pl.estimates.devices import Device
from montessori_pl.synthesis.answer_formats import ANSWER_FORMS, AnswerFormat
from montessori_pl.synthesis.prompts import load_template

PAPER = (1000, 2500, 10_000)
"""Examples to warm up on, prompts to probe and examples to train on in Montessori-Instruct (arXiv 2410.14208)."""
SMALLEST = (16, 12, 32)
"""Fewer of them teach nothing, and give influence nothing to compare."""
REASONING_TOKENS = 160
"""What a teacher may say before the tags of its instruction."""
TEMPLATE_TOKENS = 32
"""What a chat template writes around an exchange."""
BYTES_OF_TRAINING = 20
"""For each parameter of a training of all weights, with room for activations: float32 weights, gradients, two moments,
and casts."""


@dataclass(frozen=True)
class Endpoint:
    """Where a teacher answers that is not loaded here."""

    model: str
    """What it is called there."""
    base_url: str
    """Address of the API."""
    api_key_env: str | None
    """Environment variable of the key."""
    price: tuple[float, float] | None
    """US dollars for a million tokens of prompts and of completions."""


@dataclass(frozen=True)
class Draft:
    """All that a recipe is written from."""

    student: LookedAt
    """The student."""
    teacher: LookedAt | Endpoint
    """The teacher."""
    texts: Texts
    """The files."""
    device: Device
    """The machine."""
    vllm: bool
    """Whether vLLM generates."""
    run: str
    """Directory of the run."""
    scale: float = 0.1
    """Counts as a share of the paper's."""
    asked_format: AnswerFormat | None = None
    """How the user wants the teacher to be asked; none chooses by its size."""
    prompt: str | None = None
    """The request that the user wants: of a shipped name, or a file; none takes that of the answer format."""
    adapter_only: bool = False
    """Whether the last training has an adapter, too, also where all weights would have room."""

    @property
    def on_cpu(self) -> bool:
        """Whether there is no GPU."""
        return self.device.is_cpu

    @property
    def all_weights(self) -> bool:
        """Whether the student is trained whole in the end."""
        room = self.student.size.parameters * BYTES_OF_TRAINING < self.device.memory
        return room and not self.on_cpu and not self.adapter_only

    @property
    def counts(self) -> tuple[int, int, int]:
        """Examples to warm up on, prompts to probe, examples to train on."""
        warmup, prompts, training = (
            max(least, round(self.scale * number)) for number, least in zip(PAPER, SMALLEST, strict=True)
        )
        return warmup, prompts, training

    @property
    def at_least(self) -> bool:
        """Whether there is nothing left to take away."""
        return self.scale * PAPER[2] <= SMALLEST[2]

    @cached_property
    def answer_format(self) -> tuple[AnswerFormat, str]:
        """How the teacher is asked, and why."""
        if self.asked_format is not None:
            return self.asked_format, "as it was asked for"
        if isinstance(self.teacher, Endpoint):
            return "tags", "what most chat endpoints can be asked; whole_completion is for those that forget the tags"
        return self.teacher.answer_format

    @property
    def num_shots(self) -> tuple[int, int]:
        """Shots from the seed tasks, and from what was written."""
        few, many = (3, 0), (6, 2)  # the paper's
        wanted = many if self.answer_format[0] == "tags" else few
        room = self._teacher_context // 2 - self._request_tokens - self.instruction_tokens
        fitting = max(1, room // max(1, self.instructions.long))
        return wanted if sum(wanted) <= fitting else (min(few[0], fitting), 0)

    @property
    def instruction_tokens(self) -> int:
        """`instruction_sampling.max_tokens`."""
        reasoning = REASONING_TOKENS if self.answer_format[0] == "tags" else 8
        return self._within(_upwards(1.5 * self.instructions.long + reasoning, 16))

    @property
    def response_tokens(self) -> int:
        """`response_sampling.max_tokens`."""
        return self._within(_upwards(1.25 * self.responses.long + 4, 8))

    @property
    def max_length(self) -> int:
        """Tokens of an example or a reference that the student sees."""
        examples = self.instructions.long * 1.5 + self.response_tokens + TEMPLATE_TOKENS
        longest = max(self._conversation(one.instruction, one.response) for one in self.texts.examples)
        return min(self.student.context, _upwards(max(examples, min(longest, 2 * examples)), 32))

    @property
    def pair_length(self) -> int:
        """Tokens of a side of a preference pair: the request with its shots, and what was written."""
        shots = sum(self.num_shots) * (1.2 * self.instructions.long + 8)
        return min(self._teacher_context, _upwards(self._request_tokens + shots + self.instruction_tokens, 64))

    @property
    def max_model_len(self) -> int:
        """Longest prompt with completion of vLLM."""
        answered = 2 * self.instructions.long + self.response_tokens + TEMPLATE_TOKENS
        context = min(self._teacher_context, self.student.context)
        return min(context, _upwards(max(2 * self.pair_length, answered, self.max_length), 256))

    @property
    def short_answers(self) -> bool:
        """Whether answers can be compared word for word."""
        return self.texts.test is not None and self.responses.long <= SHORT_ANSWER

    @property
    def max_similarity(self) -> float:
        """Short tasks of one kind differ in few words."""
        return 0.9 if self.texts.words() <= 15 else 0.7

    @property
    def batch_sizes(self) -> tuple[int, int, int]:
        """Examples or pairs of one process in the warm-up, the alignment and the training: at least a dozen steps."""
        warmup, prompts, training = self.counts
        return self._batch(warmup), self._batch(prompts), self._batch(training)

    @property
    def prompts_per_batch(self) -> int:
        """Prompts between two commits: on a CPU a minute or so."""
        return 4 if self.on_cpu else 32

    @property
    def learning_rates(self) -> tuple[float, float, float]:
        """Of the student's adapter, of the teacher's, and of all weights: starting points by size.

        A model that can answer loses by long steps (`benchmarks/notes/2026-11-29-plan.md`, at its end).
        """
        size, of_student = self.student.size.parameters, 2e-4
        teacher = self.teacher.size.parameters if isinstance(self.teacher, LookedAt) else CAPABLE
        of_teacher = 2e-4 if teacher < 3 * 10**8 else 5e-5 if teacher < CAPABLE else 1e-5
        return of_student, of_teacher, 1e-4 if size < 3 * 10**8 else 1e-5

    @property
    def tensor_parallel(self) -> int:
        """GPUs over which vLLM splits the teacher: a power of two, until weights take half of each."""
        assert isinstance(self.teacher, LookedAt)
        largest = 2 * max(self.teacher.size.parameters, self.student.size.parameters)
        parts = 1
        while largest / parts > 0.5 * self.device.memory and 2 * parts <= self.device.count:
            parts *= 2
        return parts

    def smaller(self, scale: float) -> "Draft":
        """With other counts."""
        return dataclasses.replace(self, scale=scale)

    def _batch(self, count: int) -> int:
        whole = min(32, 2 ** max(1, int(math.log2(max(2, count / 12)))))
        return max(1, whole // self.device.count)

    def _within(self, tokens: int) -> int:
        return min(tokens, 1024, self._teacher_context // 3)

    @property
    def _teacher_context(self) -> int:
        return self.teacher.context if isinstance(self.teacher, LookedAt) else 2**17

    @cached_property
    def instructions(self) -> Lengths:
        """Tokens of the seed tasks' instructions."""
        return self.texts.instructions(self._tokens)

    @cached_property
    def responses(self) -> Lengths:
        """Tokens of the reference set's responses."""
        return self.texts.responses(self._tokens)

    @cached_property
    def _request_tokens(self) -> int:
        """Of the request without shots, with what the template writes around it."""
        request = load_template(self.prompt or ANSWER_FORMS[self.answer_format[0]].request)
        return self._tokens(request) + TEMPLATE_TOKENS

    def _conversation(self, instruction: str, response: str) -> int:
        return self.student.tokens(instruction) + self.student.tokens(response) + TEMPLATE_TOKENS

    def _tokens(self, text: str) -> int:
        """By the tokenizer that needs more of them."""
        own = self.student.tokens(text)
        return max(own, self.teacher.tokens(text)) if isinstance(self.teacher, LookedAt) else own


def _upwards(number: float, step: int) -> int:
    return step * math.ceil(number / step)
