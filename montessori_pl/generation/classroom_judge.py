"""A judge for the classroom: a program that speaks as a judge model would."""

import random
import re
from collections.abc import Sequence

from montessori_pl.bounds import Share
from montessori_pl.classroom.tasks import SKILLS, family, solve
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.records import Message, stable_seed
from montessori_pl.generation.base import Completion, GenerationBackend, Request, Sampling
from montessori_pl.models.loading import ModelSource

_MATERIAL = re.compile(r"<instruction>\s*(.*?)\s*</instruction>\s*<response>\s*(.*?)\s*</response>", re.DOTALL)
_PAIR = re.compile(
    r"<instruction>\s*(.*?)\s*</instruction>\s*<answer_a>\s*(.*?)\s*</answer_a>\s*<answer_b>\s*(.*?)\s*</answer_b>",
    re.DOTALL,
)
_REFUSAL = re.compile(r"sorry\b|ask me later")


class ClassroomJudge(GenerationBackend):
    """A judge that is right most of the time, as long as it is asked about the classroom.

    It is no model: a program that looks up the right answer, so that the path of a judge can be walked offline and in
    seconds. What a recipe gains with it says nothing of what it would gain with a real judge.

    It reads a prompt that holds `<instruction>...</instruction> <response>...</response>`, as the shipped one does, and
    writes a reason and `Score: n`:

    | instruction | response | score |
    |---|---|---|
    | a target skill | right | 5, one time in five 4 |
    | a target skill | wrong | 1 or 2 |
    | a distractor | any other than a refusal or none | 3 |
    | any | a refusal, or none | 1 |
    | none of the classroom's | any other | 0 or 1 |

    In a prompt with `<instruction>...</instruction> <answer_a>...</answer_a> <answer_b>...</answer_b>` it scores both
    answers and writes the verdict `[[A]]`, `[[B]]` or, for equal scores, `[[C]]`.

    Args:
        error_rate: how often the score, or the verdict, is drawn evenly from all that there are instead.
        silence_rate: how often the judgement holds none.
    """

    def __init__(self, error_rate: Share = 0.1, silence_rate: Share = 0.02) -> None:
        if error_rate + silence_rate > 1:
            raise ValueError(
                "error_rate and silence_rate are shares of the judgements and together at most 1, found "
                f"error_rate {error_rate:g} and silence_rate {silence_rate:g}"
            )
        self.error_rate, self.silence_rate = error_rate, silence_rate

    def context(self, chat_template: ChatTemplate | None) -> None:
        """A program has none."""
        return

    def load(self, source: ModelSource) -> None:
        """Nothing: there is no model, whatever the source is called."""

    def fits(self, messages: Sequence[Message], sampling: Sampling) -> bool:
        """A program has no context that could be too short."""
        return True

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One judgement for each request; how it is drawn depends on the request alone, not on `sampling`.

        Raises:
            ValueError: a request holds no instruction and response.
        """
        return [self._judge(request) for request in requests]

    def close(self) -> None:
        """Nothing."""

    def _judge(self, request: Request) -> Completion:
        prompt = request.messages[-1]["content"]
        rng = random.Random(stable_seed(prompt, request.seed))
        if pair := _PAIR.search(prompt):
            opinions = [_opinion(pair[1], pair[place], rng) for place in (2, 3)]
            reason = " ".join(f"{name} : {one}" for name, (one, _) in zip("AB", opinions, strict=True))
            (_, a), (_, b) = opinions
            verdict = "C" if a == b else "A" if a > b else "B"
            text = self._said(reason, f"[[{verdict}]]", [f"[[{one}]]" for one in "ABC"], rng)
        elif found := _MATERIAL.search(prompt):
            reason, score = _opinion(found[1], found[2], rng)
            text = self._said(reason, f"Score: {score}", [f"Score: {one}" for one in range(6)], rng)
        else:
            raise ValueError(
                "ClassroomJudge finds nothing to judge: it reads prompts that hold <instruction>...</instruction> and, "
                "behind it, <response>...</response>, or <answer_a>...</answer_a> <answer_b>...</answer_b>"
            )
        return Completion(text=text, finished=True, num_tokens=len(text.split()) + 1)

    def _said(self, reason: str, conclusion: str, conclusions: Sequence[str], rng: random.Random) -> str:
        """The judgement, in which the conclusion is now and then another one, or missing."""
        fate = rng.random()
        if fate < self.silence_rate:
            return "it is hard to say ."
        errs = fate < self.silence_rate + self.error_rate
        return f"{reason}\n{rng.choice(conclusions) if errs else conclusion}"


def _opinion(instruction: str, response: str, rng: random.Random) -> tuple[str, int]:
    """What is thought of a response, with a reason."""
    name = family(instruction)
    if not response or _REFUSAL.match(response):
        return "it does not do what was asked .", 1
    if name is None:
        return "the instruction makes no sense .", rng.choice((0, 1))
    if name not in SKILLS:
        return f"it is fitting talk , and nobody can say more of {name} .", 3
    if response == solve(instruction):
        return f"it is right : {name} gives {response} .", rng.choice((5, 5, 5, 5, 4))
    return f"it is wrong : {name} gives {solve(instruction)} .", rng.choice((1, 2))
