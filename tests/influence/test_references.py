"""The reference set: whatever batches it comes in, the same losses in the given order; and how they are averaged."""

import random
from collections.abc import Sequence

import pytest
import torch
from influence_models import (
    LONGEST,
    Tokens,
    assert_close,
    collate,
    make_examples,
    make_model,
    reference_set,
    slow_losses,
)
from torch import Tensor

from montessori_pl.influence import Batch, Params, Reduction, ReferenceSet, ResponseLosses, trainable_parameters

REFERENCES = make_examples(19, seed=2)
NUM_TOKENS = [len(one.ids) - one.num_prompt for one in REFERENCES]
REDUCTIONS: list[Reduction] = ["examples", "tokens", "batches_of_8"]


class Losses:
    """Losses from a table, one for each first token; keeps the shapes that it was called with."""

    def __init__(self, table: Sequence[float]) -> None:
        self.table, self.shapes = torch.tensor(table, dtype=torch.float64), list[tuple[int, ...]]()

    def __call__(self, params: Params, batch: Batch) -> Tensor:
        self.shapes.append(tuple(batch["input_ids"].shape))
        return self.table[batch["input_ids"][:, 0]] + params["shift"]


NO_SHIFT = {"shift": torch.zeros((), dtype=torch.float64)}


def numbered(num_tokens: Sequence[int]) -> list[Tokens]:
    """Examples whose first token is their number and whose response has so many tokens."""
    return [Tokens([number] + [0] * length, num_prompt=1) for number, length in enumerate(num_tokens)]


def test_an_unknown_reduction_is_no_other_one() -> None:
    with pytest.raises(ValueError, match=r"reduction: expected one of examples, tokens, .*, found 'token'"):
        ReferenceSet(Losses([0.0]), [collate(numbered([1]))], "token")  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
@pytest.mark.parametrize("batching", ["one by one", "pairs", "together", "padded"])
def test_losses_in_the_given_order_whatever_the_batches(batching: str, batch_tokens: int) -> None:
    model = make_model("llama", "lora", torch.float64)
    size = {"one by one": 1, "pairs": 2}.get(batching, len(REFERENCES))
    width = LONGEST + 3 if batching == "padded" else None
    batches = [collate(REFERENCES[at : at + size], width) for at in range(0, len(REFERENCES), size)]
    references = ReferenceSet(ResponseLosses(model), batches, batch_tokens=batch_tokens)
    found = references.losses(trainable_parameters(model))

    assert not found.requires_grad
    torch.testing.assert_close(found, slow_losses(model, REFERENCES).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gradient_tokens", [1, 40, None])
def test_gradients_pass_by_pass(gradient_tokens: int | None) -> None:
    """However few tokens a pass with gradients may have, their sum is the gradient of the average."""
    model = make_model("llama", "lora", torch.float64)
    params, losses = trainable_parameters(model), ResponseLosses(model)
    seen: list[int] = []

    def watched(moving: Params, batch: Batch) -> Tensor:
        seen.append(batch["labels"].numel())
        return losses(moving, batch)

    references = ReferenceSet(watched, [collate(REFERENCES)], "tokens", gradient_tokens=gradient_tokens)
    found = references.gradient(params)
    leaves = {name: param.clone().requires_grad_() for name, param in params.items()}
    average = (losses(leaves, collate(REFERENCES)) * references.weights).sum()
    expected = torch.autograd.grad(average, list(leaves.values()))
    for (name, gradient), wanted in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12, msg=name)
    assert all(size <= max(gradient_tokens, LONGEST) for size in seen) if gradient_tokens else seen


def test_some_losses_in_the_order_asked_for() -> None:
    model = make_model("llama", "lora", torch.float64)
    references, params = reference_set(model, REFERENCES, batch_tokens=40), trainable_parameters(model)
    some = [7, 0, 18, 3]

    torch.testing.assert_close(references.losses(params, some), references.losses(params)[some], rtol=0, atol=1e-12)


def test_another_order_gives_the_same_losses_in_that_order() -> None:
    model = make_model("llama", "lora", torch.float64)
    order = random.Random(0).sample(range(len(REFERENCES)), len(REFERENCES))
    params = trainable_parameters(model)
    found = reference_set(model, [REFERENCES[i] for i in order], batch_tokens=50).losses(params)

    torch.testing.assert_close(found, reference_set(model, REFERENCES).losses(params)[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_tokens", [1, 20, 45, 1000])
def test_no_batch_is_larger_than_allowed(batch_tokens: int) -> None:
    """Padding counts; an example that is larger alone is a batch of its own."""
    loss = Losses([0.0] * 19)
    examples = [Tokens([number, *one.ids], num_prompt=1) for number, one in enumerate(REFERENCES)]
    ReferenceSet(loss, [collate(examples)], batch_tokens=batch_tokens).losses(NO_SHIFT)

    assert sum(rows for rows, _ in loss.shapes) == len(examples)
    assert all(rows == 1 or rows * width <= batch_tokens for rows, width in loss.shapes)
    assert len(loss.shapes) == {1: 19, 1000: 1}.get(batch_tokens, len(loss.shapes))
    packed = sum(rows * width for rows, width in loss.shapes)
    assert packed <= len(examples) * max(len(one.ids) for one in examples)


def test_reductions_by_hand() -> None:
    """Losses 1, 2, 6 with 1, 3, 2 response tokens: mean 9/3 = 3; by tokens (1 + 6 + 12)/6 = 19/6."""
    for reduction, expected in (("examples", 3.0), ("tokens", 19 / 6), ("batches_of_8", 19 / 6)):
        loss = Losses([1.0, 2.0, 6.0])
        references = ReferenceSet(loss, [collate(numbered([1, 3, 2]))], reduction=reduction, batch_tokens=4)
        assert references.average(references.losses(NO_SHIFT))[0] == pytest.approx(expected, rel=1e-15)


def test_weights_by_losses_by_hand() -> None:
    """Losses 1, 2, 6 before a step that lowers the last two by 1 and 3: (0 * 1 + 1 * 2 + 3 * 6)/9; none weighs less."""
    references = ReferenceSet(Losses([0.0] * 3), [collate(numbered([1, 3, 2]))], reduction="losses")
    lowered = torch.tensor([0.0, 1.0, 3.0])
    assert references.average(lowered)[0] == pytest.approx(4 / 3), "all alike as long as losses are not known"
    references.weigh(torch.tensor([1.0, 2.0, 6.0]))
    assert references.average(lowered)[0] == pytest.approx(20 / 9)
    references.weigh(torch.zeros(3))
    assert references.average(lowered)[0] == pytest.approx(20 / 9), "zeros weigh nothing"


@pytest.mark.parametrize("trained", ["lora", "all"])
def test_weighed_by_losses_the_gradient_is_that_of_their_squares(trained: str) -> None:
    model = make_model("llama", trained, torch.float64)
    references = reference_set(model, REFERENCES, reduction="losses", batch_tokens=40)
    params = trainable_parameters(model)
    references.weigh(references.losses(params))
    found = references.gradient(params)

    losses = slow_losses(model, REFERENCES)
    ((losses**2).sum() / 2 / losses.detach().sum()).backward()
    expected = {name: param.grad for name, param in model.named_parameters() if param.requires_grad}
    assert_close(found, expected, 1e-12)
    assert references.weights.unique().numel() > 1


def test_batches_of_8_by_hand() -> None:
    """Eight losses of 1 with one token each but the last with 3 of loss 5: (7 + 15)/10 = 2.2; then 2 and 4 with 1 and 3
    tokens: (2 + 12)/4 = 3.5; together (2.2 + 3.5)/2 = 2.85, not the (22 + 14)/14 of all tokens."""
    loss = Losses([1.0] * 7 + [5.0, 2.0, 4.0])
    examples = numbered([1] * 7 + [3, 1, 3])
    references = ReferenceSet(loss, [collate(examples)], reduction="batches_of_8")
    assert references.average(references.losses(NO_SHIFT))[0] == pytest.approx(2.85, rel=1e-15)
    assert ReferenceSet(loss, [collate(examples)], reduction="tokens").average(loss.table)[0] == pytest.approx(36 / 14)


def test_batches_of_8_as_the_original_does() -> None:
    """Batches of eight in order; in each the mean over its response tokens; then the mean over batches."""
    model = make_model("llama", "lora", torch.float64)
    references = reference_set(model, REFERENCES, reduction="batches_of_8", batch_tokens=30)
    found, _ = references.average(references.losses(trainable_parameters(model)))

    means = []
    for at in range(0, len(REFERENCES), 8):
        batch = collate(REFERENCES[at : at + 8])
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        means.append(nn_cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()))
    assert len(means) == 3
    assert found == pytest.approx(sum(means) / 3, rel=1e-12)


def nn_cross_entropy(logits: Tensor, labels: Tensor) -> float:
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100).item()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_sum_to_one(reduction: Reduction) -> None:
    model = make_model("llama", "lora", torch.float64)
    weights = reference_set(model, REFERENCES, reduction=reduction).weights

    assert weights.sum().item() == pytest.approx(1, abs=1e-14)
    assert (weights > 0).all()
    assert reduction == "examples" or weights.unique().numel() > 1


def test_standard_error_by_hand() -> None:
    """Equal weights: 1, 2, 6 has deviations -2, -1, 3: sqrt(14/2)/sqrt(3) = sqrt(7/3). Weights 1/6, 3/6, 2/6: mean
    19/6, deviations -13/6, -7/6, 17/6: sqrt((169 + 9*49 + 4*289)/36/36 * 3/2)."""
    terms = torch.tensor([1.0, 2.0, 6.0])
    for reduction, expected in (("examples", (7 / 3) ** 0.5), ("tokens", ((169 + 441 + 1156) / 1296 * 1.5) ** 0.5)):
        references = ReferenceSet(Losses([0.0] * 3), [collate(numbered([1, 3, 2]))], reduction=reduction)
        assert references.average(terms)[1] == pytest.approx(expected, rel=1e-12)


def test_weighted_standard_error_is_the_spread_over_reference_sets() -> None:
    """4000 sets of 24 references are drawn; their averages spread as one set says of itself, within a tenth."""
    generator = torch.Generator().manual_seed(0)
    lengths = [1 + (7 * i) % 5 for i in range(24)]
    references = ReferenceSet(Losses([0.0] * 24), [collate(numbered(lengths))], reduction="tokens")
    draws = [references.average(torch.randn(24, generator=generator).double()) for _ in range(4000)]
    means, errors = torch.tensor(draws).unbind(1)

    assert (errors**2).mean().sqrt().item() == pytest.approx(means.std().item(), rel=0.1)


def test_a_single_example_has_no_standard_error() -> None:
    mean, error = ReferenceSet(Losses([3.0]), [collate(numbered([2]))]).average(torch.tensor([3.0]))

    assert mean == 3
    assert error != error  # nan


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("trained", ["lora", "all"])
def test_gradient_is_that_of_the_plain_average(reduction: Reduction, trained: str) -> None:
    model = make_model("llama", trained, torch.float64)
    references = reference_set(model, REFERENCES, reduction=reduction, batch_tokens=40)
    found = references.gradient(trainable_parameters(model))
    losses = slow_losses(model, REFERENCES)
    tokens = torch.tensor(NUM_TOKENS, dtype=torch.float64)
    if reduction == "examples":
        average = losses.mean()
    elif reduction == "tokens":
        average = (losses * tokens).sum() / tokens.sum()
    else:
        parts = [slice(at, at + 8) for at in range(0, len(REFERENCES), 8)]
        average = torch.stack([(losses[p] * tokens[p]).sum() / tokens[p].sum() for p in parts]).mean()
    average.backward()

    expected = {name: param.grad for name, param in model.named_parameters() if param.requires_grad}
    assert_close(found, expected, 1e-12)


def test_parameters_that_the_loss_does_not_touch_have_no_gradient() -> None:
    model = make_model("llama", "lora", torch.float64)
    model.unused = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))

    assert not reference_set(model, REFERENCES[:2]).gradient(trainable_parameters(model))["unused"].any()


@pytest.mark.parametrize("batches", [[], [{n: t[:0] for n, t in collate(REFERENCES).items()}]], ids=["none", "empty"])
def test_an_empty_set_is_refused(batches: list[Batch]) -> None:
    with pytest.raises(ValueError, match="the reference set is empty"):
        ReferenceSet(Losses([]), batches)
