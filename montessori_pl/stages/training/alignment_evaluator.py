"""Evaluates the teacher while it is trained: its loss on pairs that it does not learn, and what it writes by now.

Measures and decides nothing. Training goes on as if there had been no evaluation: the network keeps its mode, its
gradients and which of its parameters are trained, and random numbers come from a generator of its own. Evaluations
are computed without mixed precision, as the teacher will write.
"""

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from montessori_pl.batches.collate import collate, collate_pairs
from montessori_pl.batches.encoding import EncodedPair
from montessori_pl.batches.samplers import chunks
from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.records import Message, stable_seed
from montessori_pl.generation.base import Completion, GenerationBackend, Request, Sampling
from montessori_pl.generation.transformers_backend import TransformersBackend
from montessori_pl.losses import IGNORED, evaluating
from montessori_pl.models.dpo import DPOModule
from montessori_pl.models.policy import PolicyModule
from montessori_pl.synthesis.diversity import diversity
from montessori_pl.synthesis.filters import Rejected

Evaluation = dict[str, Any]
"""The numbers of one evaluation: a row of `alignment_evaluations.jsonl`."""

NUM_TEXTS = 3
"""Completions that are kept with an evaluation, to be read."""


@dataclass(frozen=True, kw_only=True)
class AlignmentEvaluator:
    """Looks at a teacher, each time at the same pairs, prompts and seeds, so that looks differ by the teacher alone."""

    teacher: PolicyModule
    """The teacher; its model is loaded when looks are taken."""
    chat_template: ChatTemplate
    """How it writes conversations."""
    held_out: Sequence[EncodedPair]
    """Pairs that it is not trained on, if it is trained on pairs; none are not evaluated."""
    prompts: Sequence[list[Message]]
    """The conversations that are asked to go on in the live sample, in turn."""
    num_samples: int
    """Completions in the live sample; 0 takes none."""
    sampling: Sampling
    """How they are drawn; they end with the model's context at the latest."""
    read: Callable[[str, bool], str]
    """Finds in a completion, which has ended or not, what it was written for, an instruction or a response, or raises
    `Rejected`."""
    seed: int
    """Of the live sample."""
    batch_size: int
    """Pairs, or completions, that are scored together."""
    stop: str = ""
    """The text at which completions stop; empty for none."""
    engine: GenerationBackend = field(default_factory=TransformersBackend)
    """Draws the live sample."""
    in_place: bool = True
    """Whether the engine is a `TransformersBackend` that samples from the teacher where it is, and of whose settings
    only the size of its batches counts. Another engine loads the teacher's weights from files, in the first process."""
    _references: dict[int, Tensor] = field(default_factory=dict, init=False)
    """What the reference policy says of the held-out pairs, by batch, from the first evaluation on."""

    def evaluate(self, weights: Path | None = None) -> Evaluation:
        """All numbers of the teacher as it is now, and some of its texts.

        Args:
            weights: where the teacher as it is now lies on the disk, for an engine that loads it; none for its base.

        Returns:
            On the held-out pairs, where there are any: `loss` (the objective of training), `margin` (mean log-ratio of
            the chosen minus that of the rejected completions, in nats and not multiplied by beta), `chosen_log_ratio`,
            `rejected_log_ratio` and `reward_accuracy`.

            On the live sample, where there is one: `parsed_rate` (completions that hold what they were written for),
            the numbers of `diversity` over what they hold, `tokens` (per completion), `kl` (mean log-ratio of teacher
            and reference policy, in nats per completion: an estimate of their divergence on the teacher's own samples,
            and without bias only where `sampling` changes no probability), `divergence` (the same per token),
            `surprise` (of the reference policy, in nats per token) and `samples`, some texts.
        """
        with evaluating(self.teacher.network), torch.no_grad():
            return {
                **(self._preferences() if self.held_out else {}),
                **(self._writing(weights) if self.num_samples and self.prompts and self._samples else {}),
            }

    @property
    def _samples(self) -> bool:
        """Whether this process draws a live sample: of engines that load files there is one."""
        return self.in_place or getattr(rank_zero_only, "rank", 0) == 0

    def _preferences(self) -> Evaluation:
        teacher = self.teacher
        assert isinstance(teacher, DPOModule)
        losses, chosen, chosen_ratios, rejected_ratios, weights, num_tokens = [], [], [], [], [], 0
        for number, pairs in enumerate(chunks(self.held_out, self.batch_size)):
            batch = self._on_device(collate_pairs(pairs, self.chat_template.tokenizer.pad_token_id))
            if number not in self._references:
                self._references[number] = teacher.reference_log_probabilities(batch)
            output, log_probabilities, _ = teacher.dpo({**batch, "reference": self._references[number]})
            losses.append(output.loss)
            chosen.append(log_probabilities)
            chosen_ratios.append(output.chosen_rewards / teacher.beta)
            rejected_ratios.append(output.rejected_rewards / teacher.beta)
            weights.append(batch["weights"])
            num_tokens += int((batch["labels"][: len(pairs), 1:] != IGNORED).sum())
        parts = torch.cat(losses), torch.cat(chosen), torch.cat(weights)
        loss = teacher.objective(*parts, num_tokens).loss
        margins = torch.cat(chosen_ratios) - torch.cat(rejected_ratios)
        return {
            "loss": float(loss),
            "margin": float(margins.mean()),
            "chosen_log_ratio": float(torch.cat(chosen_ratios).mean()),
            "rejected_log_ratio": float(torch.cat(rejected_ratios).mean()),
            "reward_accuracy": float((margins > 0).float().mean()),
        }

    def _writing(self, weights: Path | None) -> Evaluation:
        asked = list(itertools.islice(itertools.cycle(self.prompts), self.num_samples))
        completions = self._sample(asked, weights)
        found = []
        for completion in completions:
            with suppress(Rejected):
                found.append(self.read(completion.text, completion.finished))
        policy, reference, num_tokens = self._log_probabilities(asked, completions)
        return {
            "parsed_rate": len(found) / len(completions),
            **diversity(found),
            "tokens": sum(completion.num_tokens for completion in completions) / len(completions),
            "kl": float((policy - reference).mean()),
            "divergence": float((policy - reference).sum()) / max(num_tokens, 1),
            "surprise": -float(reference.sum()) / max(num_tokens, 1),
            "samples": [completion.text for completion in completions[:NUM_TEXTS]],
        }

    def _sample(self, prompts: Sequence[list[Message]], weights: Path | None) -> list[Completion]:
        sampling, limit = self.sampling, self.chat_template.context
        if limit is not None:  # a longer limit than the context has room for is no mistake here: the default is long
            room = limit - max(len(self.chat_template.prompt_ids(prompt)) for prompt in prompts[: len(self.prompts)])
            sampling = replace(sampling, max_tokens=max(1, min(sampling.max_tokens, room)))
        requests = [
            Request(messages=prompt, seed=stable_seed(self.seed, "look", number), stop=self.stop)
            for number, prompt in enumerate(prompts)
        ]
        with closing(self.engine):
            if self.in_place:
                assert isinstance(self.engine, TransformersBackend)
                self.engine.serve(self.teacher.network, self.chat_template)
            else:
                self.engine.load(replace(self.teacher.source, weights=weights))
            return self.engine.generate(requests, sampling)

    def _log_probabilities(
        self, prompts: Sequence[list[Message]], completions: Sequence[Completion]
    ) -> tuple[Tensor, Tensor, int]:
        """Of each completion under teacher and reference policy, the shortest first, and the tokens of all."""
        rendered = []
        for prompt, completion in zip(prompts, completions, strict=True):
            before = self.chat_template.prompt_ids(prompt)
            turn = self.chat_template.open_turn(prompt)
            response = self.chat_template.response_ids(completion.text, completion.finished, completion.tokens, turn)
            rendered.append(Rendered(before + response, [False] * len(before) + [True] * len(response)))
        rendered.sort(key=lambda one: len(one.input_ids))
        both = [
            self.teacher.log_probabilities(self._on_device(collate(some, self.chat_template.tokenizer.pad_token_id)))
            for some in chunks(rendered, self.batch_size)
        ]
        policy, reference = (torch.cat(side) for side in zip(*both, strict=True))
        return policy, reference, sum(sum(one.completion_mask) for one in rendered)

    def _on_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = next(self.teacher.network.parameters()).device
        return {name: tensor.to(device) for name, tensor in batch.items()}


def whole_response(completion: str, finished: bool) -> str:
    """What a completion was written for where it is a response: all of it.

    Raises:
        Rejected: it is empty.
    """
    response = completion.strip()
    if not response:
        raise Rejected("empty response", completion)
    return response
