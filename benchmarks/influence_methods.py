"""The methods that `benchmarks/influence.py` compares: the original's loop, a simple loop done well, peers, and ours.

Each takes a list of probes, one row each, and returns one number for each of them; positive helps. What all probes
share is computed when a method is built.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from influence_setting import Batch, Setting, Student, stack
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from montessori_pl.influence import ControlVariateInfluence, InfluenceScorer

Score = Callable[[Sequence[Batch]], list[float]]
PROBES_AT_ONCE = 32
"""Probes in one batch of the methods that take batches."""


class OriginalLoop:
    """The loop of Montessori-Instruct, line by line, on one process (`src/collect_local_data_influence.py`).

    One step on the probe, padded to the maximum; every reference in batches of eight, padded to the maximum, with
    logits at all positions; the mean over batches of each batch's mean over tokens, fetched after every batch; then
    model and optimizer are read from disk again.
    """

    def __init__(self, student: Student, references: Sequence[Batch], longest: int) -> None:
        self.model, self.optimizer, self.longest = student.model, student.optimizer, longest
        self.batches = [stack(references[i : i + 8], longest) for i in range(0, len(references), 8)]
        self._directory = tempfile.TemporaryDirectory()
        self._weights = Path(self._directory.name) / "model.safetensors"
        self._moments = Path(self._directory.name) / "optimizer.bin"
        # Weights that two layers share lie in the file once, as Transformers saves them.
        state = self.model.state_dict()
        once = {tensor.data_ptr(): name for name, tensor in reversed(state.items())}.values()
        self._shared = sorted(state.keys() - set(once))
        save_file({name: state[name].contiguous() for name in once}, self._weights)
        torch.save(self.optimizer.state_dict(), self._moments)
        self.device = str(next(self.model.parameters()).device)
        self.before = self._evaluate()

    def __call__(self, probes: Sequence[Batch]) -> list[float]:
        """The reference loss before the step minus the one after it."""
        return [self.before - self._after(probe) for probe in probes]

    def _after(self, probe: Batch) -> float:
        self.model.train()
        self.optimizer.zero_grad()
        self.model(**stack([probe], self.longest)).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss = self._evaluate()
        missing = self.model.load_state_dict(load_file(self._weights, self.device), strict=False).missing_keys
        assert sorted(missing) == self._shared
        self.optimizer.load_state_dict(torch.load(self._moments, map_location=self.device))
        return loss

    def _evaluate(self) -> float:
        self.model.eval()
        with torch.no_grad():
            losses = [self.model(**batch).loss.item() for batch in self.batches]
        return sum(losses) / len(losses)


class SimpleLoop:
    """The same idea without the waste that is easy to see: a snapshot in memory, real lengths, batches by length.

    Args:
        student: is moved, and restored.
        references: one row each.
        autocast: computes in bfloat16 over the weights as they are.
    """

    def __init__(self, student: Student, references: Sequence[Batch], autocast: bool = False) -> None:
        self.model, self.optimizer, self.autocast = student.model, student.optimizer, autocast
        self.trained = student.trained
        rows = sorted(references, key=lambda row: row["input_ids"].shape[1])
        self.batches = [stack(rows[i : i + 16]) for i in range(0, len(rows), 16)]
        self.places = [*self.trained, *self._moments()]
        self.snapshot = [place.detach().clone() for place in self.places]
        self.before = self._evaluate()

    def __call__(self, probes: Sequence[Batch]) -> list[float]:
        """The reference loss before the step minus the one after it."""
        return [self.before - self._after(probe) for probe in probes]

    def _moments(self) -> list[Tensor]:
        return [value for param in self.trained for value in self.optimizer.state[param].values()]

    def _after(self, probe: Batch) -> float:
        with self._arithmetic():
            loss = self.model(**probe).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        after = self._evaluate()
        with torch.no_grad():
            for place, value in zip(self.places, self.snapshot, strict=True):
                place.copy_(value)
        return after

    def _evaluate(self) -> float:
        """The mean over examples of each example's mean over tokens."""
        total, count = 0.0, 0
        for batch in self.batches:
            with torch.no_grad(), self._arithmetic():
                logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            targets = batch["labels"][:, 1:]
            nats = nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, reduction="none")
            total += (nats.sum(dim=1) / (targets != -100).sum(dim=1)).double().sum().item()
            count += len(targets)
        return total / count

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.trained[0].device.type, torch.bfloat16, enabled=self.autocast)


class Ours:
    """The engine of this package, with a method of its own or one that it chooses."""

    def __init__(self, scorer: InfluenceScorer, at_once: int = PROBES_AT_ONCE) -> None:
        self.scorer, self.at_once = scorer, at_once

    def __call__(self, probes: Sequence[Batch]) -> list[float]:
        """Centred influence."""
        batches = [stack(probes[i : i + self.at_once]) for i in range(0, len(probes), self.at_once)]
        return [influence.centred for batch in batches for influence in self.scorer(batch)]


class Corrected:
    """First order, corrected on some references; shares the scorer of first order."""

    def __init__(self, scorer: InfluenceScorer, num_references: int) -> None:
        self.scorer = scorer
        with scorer._measuring():
            self.engine = ControlVariateInfluence(scorer.first_order, num_references)

    def __call__(self, probes: Sequence[Batch]) -> list[float]:
        """Centred influence."""
        batches = [stack(probes[i : i + PROBES_AT_ONCE]) for i in range(0, len(probes), PROBES_AT_ONCE)]
        with self.scorer._measuring():
            return [influence.centred for batch in batches for influence in self.engine(batch)]


class Less:
    """LESS (arXiv 2402.04333) at one checkpoint, as its public code does it, without the random projection.

    The feature of a probe is the direction that Adam would take on its gradient, that of a reference its gradient; both
    are normalized, and the score is the mean of their products over all references. Gradients are taken one example at
    a time, as its code does. The projection to 8,192 dimensions saves storage; without it the products are exact.

    Args:
        student: with the moments of its warm-up.
        references: one row each.
        cosine: normalize the features; else their plain products are averaged.
    """

    def __init__(self, student: Student, references: Sequence[Batch], cosine: bool = True) -> None:
        self.student, self.cosine = student, cosine
        total = sum(self._normalized(self._gradient(row)) for row in references)
        assert isinstance(total, Tensor)
        self.target = total / len(references)
        states = [student.optimizer.state[param] for param in student.trained]
        group = student.optimizer.param_groups[0]
        self.betas, self.eps = group["betas"], group["eps"]
        self.step = int(states[0]["step"]) + 1
        self.mean = torch.cat([state["exp_avg"].flatten() for state in states])
        self.square = torch.cat([state["exp_avg_sq"].flatten() for state in states])

    def __call__(self, probes: Sequence[Batch]) -> list[float]:
        """One number for each probe, without a unit."""
        return [(self._normalized(self._direction(self._gradient(probe))) @ self.target).item() for probe in probes]

    def _direction(self, gradient: Tensor) -> Tensor:
        first, second = self.betas
        mean = (first * self.mean + (1 - first) * gradient) / (1 - first**self.step)
        square = (second * self.square + (1 - second) * gradient**2) / (1 - second**self.step)
        return mean / (square.sqrt() + self.eps)

    def _gradient(self, row: Batch) -> Tensor:
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(self.student.model(**row).loss, self.student.trained)]
        )

    def _normalized(self, feature: Tensor) -> Tensor:
        return feature / feature.norm() if self.cosine else feature


class GradientProduct:
    """The product of a probe's gradient and the reference gradient: TracIn (arXiv 2002.08484) at one checkpoint.

    It borrows the gradients of our first order, so that only the scores differ.
    """

    def __init__(self, scorer: InfluenceScorer) -> None:
        self.scorer = scorer
        with scorer._measuring():
            gradient = scorer.references.gradient(scorer.first_order.params)
        self.gradient = torch.cat([tensor.flatten() for tensor in gradient.values()])

    def __call__(self, probes: Sequence[Batch]) -> list[float]:
        """One number for each probe, in nats per unit of learning rate."""
        values: list[float] = []
        for start in range(0, len(probes), PROBES_AT_ONCE):
            with self.scorer._measuring():
                engine = self.scorer.first_order
                rows = engine.gradients(engine.params, stack(probes[start : start + PROBES_AT_ONCE]))
            values += (torch.cat([tensor.flatten(1) for tensor in rows.values()], dim=1) @ self.gradient).tolist()
        return values


class Kronfluence:
    """Influence functions by kronfluence (arXiv 2308.03296), a peer that installs beside this package.

    Args:
        student: is copied.
        references: the queries, whose gradients are summed.
        training: examples on which the factors are fitted.
        strategy: `ekfac`, or `identity` for plain gradients.

    Raises:
        ImportError: kronfluence is not installed.
    """

    def __init__(self, student: Student, references: Sequence[Batch], training: Sequence[Batch], strategy: str) -> None:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments
        from kronfluence.task import Task
        from kronfluence.utils.dataset import DataLoaderKwargs

        names = [name for name, module in student.model.named_modules() if isinstance(module, nn.Linear)]
        tracked = [name for name in names if "lora_" in name]

        class MeanLoss(Task):
            """The sum over examples of each one's mean loss over its response."""

            def compute_train_loss(self, batch: Batch, model: nn.Module, sample: bool = False) -> Tensor:
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
                targets = batch["labels"][:, 1:]
                if sample:
                    drawn = torch.multinomial(logits.flatten(0, 1).softmax(-1), 1).view(targets.shape)
                    targets = torch.where(targets == -100, targets, drawn)
                nats = nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
                return (nats.sum(dim=1) / (targets != -100).sum(dim=1)).sum()

            def compute_measurement(self, batch: Batch, model: nn.Module) -> Tensor:
                return self.compute_train_loss(batch, model)

            def get_influence_tracked_modules(self) -> list[str]:
                return tracked

            def get_attention_mask(self, batch: Batch) -> Tensor:
                return batch["attention_mask"]

        task = MeanLoss()
        self._directory = tempfile.TemporaryDirectory()
        self._analyzer: Any = Analyzer(
            analysis_name="influence",
            model=prepare_model(student.copy().model, task),
            task=task,
            cpu=student.trained[0].device.type == "cpu",
            output_dir=self._directory.name,
            disable_tqdm=True,
            disable_model_save=True,
        )
        self._analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=stack))
        # Rows of similar length lie side by side, because its batches are taken in order.
        self._references = sorted(references, key=lambda row: row["input_ids"].shape[1])
        fitting = sorted(training, key=lambda row: row["input_ids"].shape[1])
        self._analyzer.fit_all_factors(
            "factors", fitting, per_device_batch_size=16, factor_args=FactorArguments(strategy=strategy)
        )
        self._arguments = ScoreArguments(aggregate_query_gradients=True, damping_factor=None)

    def __call__(self, probes: Sequence[Batch]) -> list[float]:
        """One number for each probe."""
        order = sorted(range(len(probes)), key=lambda index: probes[index]["input_ids"].shape[1])
        self._analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            query_dataset=self._references,
            train_dataset=[probes[index] for index in order],
            per_device_query_batch_size=16,
            per_device_train_batch_size=16,
            score_args=self._arguments,
            overwrite_output_dir=True,
        )
        values = self._analyzer.load_pairwise_scores("scores")["all_modules"].flatten().tolist()
        return [value for _, value in sorted(zip(order, values, strict=True))]


def engine(
    setting: Setting,
    student: Student,
    *,
    lr: float | None = None,
    references: Sequence[Batch] | None = None,
    **how: Any,
) -> InfluenceScorer:
    """The scorer of this package on this setting's references, or on others."""
    rows = setting.references if references is None else references
    return InfluenceScorer(student.model, student.update(setting.lr if lr is None else lr), list(rows), **how)
