"""Exact influence against brute force: copy the model, take a real optimizer step, evaluate every reference.

The tests compare at two precisions. In float64 with norms that stay there (Transformers' Llama and Qwen2 norms compute
in float32 whatever the model's precision) both ways must agree to 1e-12 of the largest influence; in float32 to 1e-5
of it. The brute force pads every example to one length and evaluates it alone, so that in no comparison both sides run
the same shapes.
"""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from influence_models import LONGEST, Tokens, collate, make_examples, make_model
from torch import Tensor, nn

from montessori_pl.influence import (
    SGD,
    AdamW,
    Batch,
    ExactInfluence,
    Influence,
    Reduction,
    ReferenceSet,
    ResponseLosses,
    UpdateRule,
    one_step,
    trainable_parameters,
)


@dataclass(frozen=True)
class Setup:
    """A model, the optimizer of its training, and the rule that shall repeat the optimizer's next step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    update: UpdateRule


PROBES = make_examples(4, seed=1)
REFERENCES = make_examples(7, seed=2)
REFERENCE_BATCHES = [collate(REFERENCES[:3]), collate(REFERENCES[3:4]), collate(REFERENCES[4:])]


def naive_loss(model: nn.Module, example: Tokens) -> Tensor:
    """Mean loss over the response of one example that is padded to the longest length of all."""
    batch = collate([example], width=LONGEST)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0]
    nats = [
        -logits[place - 1].log_softmax(dim=-1)[example.ids[place]]
        for place in range(example.num_prompt, len(example.ids))
    ]
    return torch.stack(nats).mean()


def trained_setup(
    optimizer: str,
    architecture: str = "llama",
    trained: str = "lora",
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Setup:
    """A model and its optimizer; the warm AdamW has taken three steps with it."""
    model = make_model(architecture, trained, dtype)
    options = {"lr": {"sgd": 0.3}.get(optimizer, 3e-2 if trained == "lora" else 1e-2), "weight_decay": 0.1, **options}
    params = [param for param in model.parameters() if param.requires_grad]
    if optimizer == "sgd":
        return Setup(model, torch.optim.SGD(params, **options), SGD(**options))
    torch_optimizer = torch.optim.AdamW(params, **options)
    if optimizer == "fresh adamw":
        return Setup(model, torch_optimizer, AdamW(**options))
    for example in make_examples(3, seed=3):
        torch_optimizer.zero_grad()
        naive_loss(model, example).backward()
        torch_optimizer.step()
    torch_optimizer.zero_grad()
    state = copy.deepcopy(torch_optimizer.state_dict())
    return Setup(model, torch_optimizer, AdamW.from_optimizer_state(state, list(trainable_parameters(model))))


def engine_of(
    setup: Setup, references: list[Batch] = REFERENCE_BATCHES, reduction: Reduction = "examples"
) -> ExactInfluence:
    loss = ResponseLosses(setup.model)
    reference_set = ReferenceSet(loss, references, reduction)
    return ExactInfluence(loss, trainable_parameters(setup.model), setup.update, reference_set)


def losses_after_a_real_step(setup: Setup, example: Tokens | None) -> Tensor:
    """Copy the model and its optimizer, step on the example (None: a zero gradient), evaluate every reference."""
    model = copy.deepcopy(setup.model)
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = type(setup.optimizer)(params)
    optimizer.load_state_dict(copy.deepcopy(setup.optimizer.state_dict()))
    if example is None:
        for param in params:
            param.grad = torch.zeros_like(param)
    else:
        naive_loss(model, example).backward()
    optimizer.step()
    with torch.no_grad():
        return torch.stack([naive_loss(model, reference) for reference in REFERENCES])


def assert_equals_brute_force(setup: Setup, tolerance: float, reduction: Reduction = "examples") -> None:
    """Both influences of every probe agree, up to `tolerance` times the largest of their kind."""
    engine = engine_of(setup, reduction=reduction)
    found = engine(collate(PROBES))
    with torch.no_grad():
        base = torch.stack([naive_loss(setup.model, reference) for reference in REFERENCES])
    null = losses_after_a_real_step(setup, None)
    after = torch.stack([losses_after_a_real_step(setup, probe) for probe in PROBES])

    weights = (
        base.double() / base.double().sum() if reduction == "losses" else torch.full_like(base, 1 / len(base)).double()
    )
    kinds = {"plain": (base - after).double() @ weights, "centred": (null - after).double() @ weights}
    for kind, expected in kinds.items():
        values = torch.tensor([getattr(influence, kind) for influence in found], dtype=torch.float64)
        largest = expected.abs().max().item()
        assert largest > 1e-2, "the step must be large enough for the comparison to mean something"
        torch.testing.assert_close(
            values, expected, rtol=0, atol=tolerance * largest, msg=lambda m, k=kind: f"{k}: {m}"
        )


@pytest.mark.parametrize("optimizer", ["warm adamw", "fresh adamw", "sgd"])
@pytest.mark.parametrize("trained", ["lora", "all"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_exact_equals_brute_force(optimizer: str, trained: str, dtype: torch.dtype, tolerance: float) -> None:
    assert_equals_brute_force(trained_setup(optimizer, trained=trained, dtype=dtype), tolerance)


@pytest.mark.parametrize("trained", ["lora", "all"])
def test_exact_equals_brute_force_weighed_by_losses(trained: str) -> None:
    """By those before any step, also where the influence is measured from a step with zero gradient."""
    assert_equals_brute_force(trained_setup("warm adamw", trained=trained), 1e-12, "losses")


@pytest.mark.parametrize("architecture", ["qwen2", "gpt_neox"])
@pytest.mark.parametrize("trained", ["lora", "all"])
def test_exact_equals_brute_force_for_other_architectures(architecture: str, trained: str) -> None:
    assert_equals_brute_force(trained_setup("warm adamw", architecture, trained), 1e-12)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("rule", [SGD, AdamW])
def test_a_learning_rate_of_zero_gives_exactly_zero(rule: type[SGD] | type[AdamW], weight_decay: float) -> None:
    model = make_model("llama", "lora", torch.float32)
    update = rule(lr=0.0, weight_decay=weight_decay)
    loss = ResponseLosses(model)
    engine = ExactInfluence(loss, trainable_parameters(model), update, ReferenceSet(loss, REFERENCE_BATCHES))
    (influence,) = engine(collate(PROBES[:1]))

    assert (influence.plain, influence.centred) == (0.0, 0.0)
    assert not influence.differences.any()


def test_a_learning_rate_of_zero_gives_exactly_zero_with_warm_moments() -> None:
    setup = trained_setup("warm adamw", dtype=torch.float32)
    names = list(trainable_parameters(setup.model))
    still = AdamW.from_optimizer_state(setup.optimizer.state_dict(), names, lr=0.0)
    (influence,) = engine_of(Setup(setup.model, setup.optimizer, still))(collate(PROBES[:1]))

    assert (influence.plain, influence.centred) == (0.0, 0.0)


def test_the_order_of_probes_changes_nothing() -> None:
    engine = engine_of(trained_setup("warm adamw", dtype=torch.float32))
    forward = [influence.differences for influence in engine(collate(PROBES))]
    backward = [influence.differences for influence in engine(collate(PROBES[::-1]))]

    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))


def test_the_company_of_a_probe_changes_nothing() -> None:
    engine = engine_of(trained_setup("warm adamw", dtype=torch.float32))
    for probe, influence in zip(PROBES, engine(collate(PROBES)), strict=True):
        assert torch.equal(engine(collate([probe]))[0].differences, influence.differences)


def test_the_order_of_reference_batches_changes_nothing() -> None:
    setup = trained_setup("warm adamw", dtype=torch.float32)
    engine, reversed_engine = engine_of(setup), engine_of(setup, REFERENCE_BATCHES[::-1])
    for probe in PROBES:
        (influence,), (other,) = engine(collate([probe])), reversed_engine(collate([probe]))
        assert influence.differences.sort().values.equal(other.differences.sort().values)
        assert influence.centred == pytest.approx(other.centred, rel=1e-12)


@pytest.mark.parametrize(
    "batches",
    [
        [collate(REFERENCES)],
        [collate([reference]) for reference in REFERENCES],
        [collate(REFERENCES[:2], width=LONGEST), collate(REFERENCES[2:], width=LONGEST)],
    ],
    ids=["one batch", "one by one", "padded further"],
)
def test_batching_and_padding_of_references_changes_nothing(batches: list[Batch]) -> None:
    setup = trained_setup("warm adamw")
    engine, other = engine_of(setup), engine_of(setup, batches)
    for probe in PROBES:
        assert_float_noise(*engine(collate([probe])), *other(collate([probe])))


def test_padding_of_a_probe_changes_nothing() -> None:
    engine = engine_of(trained_setup("warm adamw"))
    for probe in PROBES:
        assert_float_noise(*engine(collate([probe])), *engine(collate([probe], width=LONGEST)))


def assert_float_noise(influence: Influence, other: Influence) -> None:
    torch.testing.assert_close(influence.differences, other.differences, rtol=0, atol=1e-11)
    assert influence.plain == pytest.approx(other.plain, abs=1e-11)


@pytest.mark.parametrize("trained", ["lora", "all"])
def test_the_model_and_the_moments_stay_bit_identical(trained: str) -> None:
    setup = trained_setup("warm adamw", trained=trained, dtype=torch.float32)
    assert isinstance(setup.update, AdamW)
    model_before = copy.deepcopy(setup.model.state_dict())
    moments_before = copy.deepcopy(setup.update.moments)
    engine = engine_of(setup)
    for probe in PROBES:
        engine(collate([probe]))

    torch.testing.assert_close(setup.model.state_dict(), model_before, rtol=0, atol=0)
    assert setup.update.moments is not None
    assert moments_before is not None
    torch.testing.assert_close(vars(setup.update.moments), vars(moments_before), rtol=0, atol=0)
    assert all(param.grad is None for param in setup.model.parameters())


def test_centred_and_plain_differ_by_one_constant() -> None:
    """Which is what a step with zero gradient does: stale momentum, and nothing else."""
    setup = trained_setup("warm adamw")
    engine = engine_of(setup)
    shifts = [influence.plain - influence.centred for influence in engine(collate(PROBES))]

    constant = (engine.base_losses - engine.null_losses).mean().item()
    assert abs(constant) > 1e-4
    assert shifts == pytest.approx([constant] * len(PROBES), abs=1e-12)


def test_without_momentum_and_decay_both_influences_are_the_same() -> None:
    engine = engine_of(trained_setup("fresh adamw", weight_decay=0.0))
    (influence,) = engine(collate(PROBES[:1]))

    assert influence.plain == influence.centred != 0.0


def test_standard_errors_are_paired_over_reference_examples() -> None:
    setup = trained_setup("warm adamw")
    (influence,) = engine_of(setup)(collate(PROBES[:1]))
    base = engine_of(setup).base_losses
    null, after = losses_after_a_real_step(setup, None), losses_after_a_real_step(setup, PROBES[0])

    for found, differences in (
        (influence.plain_standard_error, base - after),
        (influence.centred_standard_error, null - after),
    ):
        variance = sum((d - differences.mean()) ** 2 for d in differences) / (len(REFERENCES) - 1)
        assert found == pytest.approx((variance / len(REFERENCES)).sqrt().item(), rel=1e-8)
    torch.testing.assert_close(influence.differences, null - after, rtol=0, atol=1e-11)


def test_a_single_reference_has_no_standard_error() -> None:
    (influence,) = engine_of(trained_setup("sgd"), [collate(REFERENCES[:1])])(collate(PROBES[:1]))

    assert influence.centred_standard_error != influence.centred_standard_error  # nan
    assert influence.centred != 0.0


def test_autocast_has_no_say() -> None:
    engine = engine_of(trained_setup("warm adamw", dtype=torch.float32))
    (expected,) = engine(collate(PROBES[:1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = engine(collate(PROBES[:1]))

    assert found.centred == expected.centred


def test_no_graph_is_kept() -> None:
    engine = engine_of(trained_setup("warm adamw"))

    assert not engine(collate(PROBES[:1]))[0].differences.requires_grad
    assert not engine.base_losses.requires_grad


def test_it_works_in_inference_mode() -> None:
    setup = trained_setup("warm adamw")
    (expected,) = engine_of(setup)(collate(PROBES[:1]))
    with torch.inference_mode():
        (found,) = engine_of(setup)(collate(PROBES[:1]))

    assert found.centred == expected.centred


def test_one_step_keeps_names_shapes_and_types() -> None:
    setup = trained_setup("warm adamw")
    params = trainable_parameters(setup.model)
    moved = one_step(ResponseLosses(setup.model), params, collate(PROBES[:1]), setup.update)

    assert [(name, p.shape, p.dtype) for name, p in moved.items()] == [(n, p.shape, p.dtype) for n, p in params.items()]
    assert not any(torch.equal(moved[name], params[name]) for name in params)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_in_half_precision_are_refused(dtype: torch.dtype) -> None:
    model = make_model("llama", "all", dtype)

    with pytest.raises(ValueError, match="needs parameters in float32"):
        engine_of(Setup(model, torch.optim.SGD(model.parameters(), lr=0.1), SGD(lr=0.1)))


def test_an_unknown_parameter_name_is_refused() -> None:
    model = make_model("llama", "lora", torch.float32)
    loss = ResponseLosses(model)
    params = {f"student.{name}": param for name, param in trainable_parameters(model).items()}

    with pytest.raises(ValueError, match="has no parameters named"):
        ExactInfluence(loss, params, SGD(lr=0.1), ReferenceSet(loss, REFERENCE_BATCHES))


def test_an_empty_reference_set_is_refused() -> None:
    with pytest.raises(ValueError, match="reference set is empty"):
        engine_of(trained_setup("sgd"), [])
