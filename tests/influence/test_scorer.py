"""The engine as a whole, on a small model that has been trained: promises hold on examples it has not seen."""

import copy
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from influence_models import Tokens, collate, make_model, on_layers
from peft import LoraConfig, get_peft_model
from torch import nn

from montessori_pl.influence import (
    AdamW,
    Batch,
    Influence,
    InfluenceScorer,
    ResponseLosses,
    scorer,
    trainable_parameters,
)
from montessori_pl.stats.correlation import spearman

USED = 1e-3
GROUP = 4


def tasks(num_examples: int, seed: int) -> list[Tokens]:
    """Repeat some digits, reverse them, or count each up by one: the first token says which."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(num_examples):
        digits = torch.randint(10, (int(torch.randint(2, 6, (1,), generator=generator)),), generator=generator).tolist()
        task = int(torch.randint(3, (1,), generator=generator))
        answer = [digits, digits[::-1], [(digit + 1) % 10 for digit in digits]][task]
        ids = [10 + task, *digits, 13, *answer, 14]
        examples.append(Tokens(ids, num_prompt=len(digits) + 2))
    return examples


def batches(num_batches: int, seed: int) -> list[Batch]:
    return [collate(tasks(2 * GROUP, seed + number)) for number in range(num_batches)]


def train(model: nn.Module, num_steps: int, lr: float, seed: int) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW([param for param in model.parameters() if param.requires_grad], lr=lr)
    for step in range(num_steps):
        optimizer.zero_grad()
        ResponseLosses(model)({}, collate(tasks(12, seed + step))).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, dict[str, Any]]:
    """A model after some training, with an adapter after some more, and the state of its optimizer."""
    torch.set_num_threads(1)
    model = make_model(
        "llama", "all", torch.float32, hidden_size=32, intermediate_size=64, initializer_range=0.05, vocab_size=16
    )
    train(model, 60, 3e-3, seed=100)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")).eval()
    return model, train(model, 30, USED, seed=300).state_dict()


REFERENCES = [collate(tasks(32, seed=1))]
SAMPLE, HELD_OUT = batches(6, seed=1000), batches(6, seed=2000)
GROUPS = [number // GROUP for number in range(6 * 2 * GROUP)]


def make(trained: tuple[nn.Module, dict[str, Any]], lr: float = USED, **settings: Any) -> InfluenceScorer:
    model, state = trained
    update = AdamW.from_optimizer_state(state, list(trainable_parameters(model)), lr=lr)
    return InfluenceScorer(model, update, REFERENCES, **settings)


def scored(engine: InfluenceScorer, held_out: Sequence[Batch] = HELD_OUT, groups: bool = False) -> list[Influence]:
    found = []
    for number, batch in enumerate(held_out):
        own = GROUPS[number * 2 * GROUP :][: 2 * GROUP]
        found += engine(batch, own if groups else None)
    return found


def values(influences: Sequence[Influence]) -> list[float]:
    return [one.centred for one in influences]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lr", "approximate"),
    [
        (USED, True),
        pytest.param(USED / 10, True, marks=pytest.mark.slow),
        pytest.param(USED * 10, False, marks=pytest.mark.slow),
    ],
)
def test_auto_keeps_its_promise_on_held_out_examples(
    trained: tuple[nn.Module, dict[str, Any]], lr: float, approximate: bool
) -> None:
    """Rank correlation of at least .99 with exact on 48 other examples; ten times too large a step is left to exact."""
    engine = make(trained, lr)
    choice = engine.calibrate(SAMPLE, GROUPS)
    assert choice is not None
    found, exact = scored(engine), scored(make(trained, lr, method="exact"))

    assert choice is engine.choice
    assert (choice.chosen.method != "exact") == approximate
    assert all(one.method == choice.chosen.method for one in found)
    assert spearman(values(found), values(exact)) >= 0.99
    assert torch.tensor(values(exact)).std() > 1e-5, "there is something to rank"
    if approximate:
        assert values(found) != values(exact)
        assert choice.chosen.cost < choice.candidates[-1].cost / 2
    else:
        assert values(found) == values(exact)
        assert choice.candidates[0].agreement.spearman < 0.99, "first order would have broken the promise"


@pytest.mark.slow
def test_before_calibration_auto_is_exact(trained: tuple[nn.Module, dict[str, Any]]) -> None:
    engine = make(trained)

    assert engine.choice is None
    assert values(engine(HELD_OUT[0])) == values(make(trained, method="exact")(HELD_OUT[0]))


def test_few_examples_prove_nothing(trained: tuple[nn.Module, dict[str, Any]]) -> None:
    """Four examples in the right order are chance; the exact method is kept."""
    engine = make(trained, USED / 10)
    choice = engine.calibrate([{name: rows[:4] for name, rows in SAMPLE[0].items()}])
    assert choice is not None
    assert choice.candidates[0].agreement.spearman == pytest.approx(1)
    assert choice.chosen.method == "exact"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings", "name"),
    [
        ("exact", {}, "exact"),
        ("first_order", {}, "first order"),
        ("control_variate", {}, "first order, corrected on 8 references"),
        ("control_variate", {"num_references": 12, "sample": 4}, "first order, corrected on 12 references"),
        ("control_variate", {"num_references": 99}, "first order, corrected on 32 references"),
    ],
)
def test_named_methods(
    trained: tuple[nn.Module, dict[str, Any]], method: str, settings: dict[str, Any], name: str
) -> None:
    """They stay what they are, whatever the calibration says; that only adds how well they agree."""
    engine = make(trained, USED * 10, method=method, **settings)
    before = engine(HELD_OUT[0])
    choice = engine.calibrate(SAMPLE[:2])
    after = engine(HELD_OUT[0])

    assert {one.method for one in before + after} == {name}
    assert values(before) == values(after)
    if method == "exact":
        assert choice is None
    else:
        assert choice is not None
        assert choice.chosen.method == name
        assert choice.reason == f"{method} was asked for"
        assert -1 <= choice.chosen.agreement.spearman <= 1
        assert choice.candidates[-1].method == "exact" or settings.get("num_references") == 99
    if settings.get("num_references") == 99:
        assert values(after) == pytest.approx(values(make(trained, USED * 10, method="exact")(HELD_OUT[0])), rel=1e-3)


def ends(scores: Sequence[float]) -> list[tuple[int, int]]:
    """The best and the worst of each group."""
    found = []
    for group in range(GROUPS[-1] + 1):
        members = scores[group * GROUP : (group + 1) * GROUP]
        found.append((members.index(max(members)), members.index(min(members))))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["first_order", "control_variate"])
def test_refinement_finds_the_true_best_and_worst(trained: tuple[nn.Module, dict[str, Any]], method: str) -> None:
    """Where a method's error stays within the margin, best and worst of a group are those of the exact method.

    At this learning rate first order is biased by twice its error (measured: 2.8e-3 and 1.3e-3), so that examples that
    are not looked at again must not win for that alone.
    """
    lr = USED * 10
    exact = values(scored(make(trained, lr, method="exact")))
    plain, refined = (make(trained, lr, method=method, refine=refine) for refine in (0.0, 3.0))
    for engine in (plain, refined):
        engine.calibrate(SAMPLE, GROUPS)
    rough, found = scored(plain, groups=True), scored(refined, groups=True)
    assert refined.choice is not None
    chosen = refined.choice.chosen
    margin = 3.0 * chosen.error + abs(chosen.bias)

    errors = [abs(a.centred - chosen.bias - b) for a, b in zip(rough, exact, strict=True)]
    covered = [max(errors[g * GROUP : (g + 1) * GROUP]) <= 1.5 * chosen.error for g in range(GROUPS[-1] + 1)]
    right = [one == other for one, other in zip(ends(values(found)), ends(exact), strict=True)]
    assert sum(covered) >= 3, "a margin that covers something"
    assert all(hit for hit, sure in zip(right, covered, strict=True) if sure)
    assert sum(right) >= sum(one == other for one, other in zip(ends(values(rough)), ends(exact), strict=True))

    again = [index for index, one in enumerate(found) if one.method == "exact"]
    assert 0 < len(again) < len(found), "some are looked at again, not all"
    assert [found[i].centred for i in again] == pytest.approx([exact[i] for i in again], rel=1e-12)
    assert again == scorer.undecided(values(rough), GROUPS, margin)
    assert all(a.centred == b.centred for i, (a, b) in enumerate(zip(found, rough, strict=True)) if i not in again)
    assert {one.method for one in rough} == {chosen.method}


@pytest.mark.slow
def test_bias_makes_no_winner(trained: tuple[nn.Module, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """An approximation that is 1.0 too high throughout, and otherwise right: refined ones are still the best."""
    engine = make(trained, USED * 10, method="first_order", refine=1.0)
    engine.calibrate(SAMPLE, GROUPS)
    assert engine.choice is not None
    exact = make(trained, USED * 10, method="exact")
    fake = copy.copy(engine.choice.chosen)
    object.__setattr__(fake, "bias", 1.0)
    object.__setattr__(engine.choice, "chosen", fake)
    monkeypatch.setattr(
        engine, "_engine", lambda batch: [Influence(0, one.centred + 1.0, 0, 0, "biased") for one in exact(batch)]
    )

    assert ends(values(scored(engine, groups=True))) == ends(values(scored(exact)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "exact", "first_order", "control_variate"])
def test_the_model_is_as_it_was(trained: tuple[nn.Module, dict[str, Any]], method: str) -> None:
    """Training modes (mixed), hooks, types and weights, with a frozen base in bfloat16; also after an exception."""
    model = copy.deepcopy(trained[0])
    for param in model.parameters():
        param.data = param.data if param.requires_grad else param.data.to(torch.bfloat16)
    model.train()
    model.get_base_model().model.layers[0].eval()
    before, weights = state_of(model), copy.deepcopy(model.state_dict())
    engine = make((model, trained[1]), method=method, refine=1.0)
    assert state_of(model) == before
    engine.calibrate(SAMPLE[:2], GROUPS[: 4 * GROUP])
    scored(engine, HELD_OUT[:1], groups=True)
    assert state_of(model) == before
    broken = {**HELD_OUT[0], "labels": torch.full_like(HELD_OUT[0]["labels"], -100)}
    with pytest.raises(ValueError, match="no response token"):
        engine(broken)

    assert state_of(model) == before
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert all(param.grad is None for param in model.parameters())


def state_of(model: nn.Module) -> list[Any]:
    modules = [
        (name, type(module), module.training, sorted(vars(module)), len(module._forward_hooks))
        for name, module in model.named_modules()
    ]
    return [modules, [(name, id(param), param.dtype, param.requires_grad) for name, param in model.named_parameters()]]


@pytest.mark.slow
def test_dropout_has_no_say() -> None:
    """A model in training mode is measured in evaluation mode."""
    found = []
    for dropout in (0.0, 0.5):
        model = make_model("llama", "lora", torch.float32, {"lora_dropout": dropout}).train()
        found.append(values(InfluenceScorer(model, AdamW(lr=1e-3), REFERENCES, method="first_order")(HELD_OUT[0])))

    assert found[0] == found[1]


def test_frozen_layers_are_skipped_by_all_methods(trained: tuple[nn.Module, dict[str, Any]]) -> None:
    """An adapter on the last layer: the scorer runs the first one once for each reference batch, and gives the same."""
    model = make_model("llama", "lora", torch.float64, on_layers("1"))
    calls: list[int] = []
    model.get_base_model().model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    found = {}
    for method in ("exact", "control_variate"):
        engine = InfluenceScorer(model, AdamW(lr=1e-2), REFERENCES, method=method, num_references=32)
        calls.clear()
        found[method] = values(engine(HELD_OUT[0]))
        if method == "exact":
            assert len(calls) == 2 * GROUP, "once for each example, never for the references"
    assert found["exact"] == pytest.approx(found["control_variate"], abs=1e-11)


@pytest.mark.slow
def test_the_five_lines_of_the_documentation_run(
    trained: tuple[nn.Module, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert scorer.__doc__ is not None
    lines = re.findall(r"^    (.+)$", scorer.__doc__, flags=re.MULTILINE)
    assert len(lines) == 5
    names: dict[str, Any] = {
        "InfluenceScorer": InfluenceScorer,
        "AdamW": AdamW,
        "model": trained[0],
        "batch": REFERENCES[0],
        "batches": SAMPLE + HELD_OUT,
    }
    exec("\n".join(lines).replace("[batch, ...]", "[batch]"), names)

    assert "of 4 methods the cheapest" in capsys.readouterr().out
    assert len(names["influences"]) == 2 * len(GROUPS)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "exact", "first_order"])
def test_examples_whose_influence_is_no_number_are_not_compared(
    trained: tuple[nn.Module, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    """The choice is made on the others, which a report without NaN shows; those examples keep what they have."""
    engine = make(trained, method=method)
    measure, lost = type(engine.exact).__call__, []

    def with_loss(self: Any, batch: Batch) -> list[Influence]:
        found = measure(self, batch)
        if not lost:
            lost.append(found[0])
            found[0] = dataclasses.replace(found[0], centred=float("nan"))
        return found

    monkeypatch.setattr(type(engine.exact), "__call__", with_loss)
    engine.calibrate(SAMPLE, GROUPS)
    assert lost
    assert engine.noise is not None
    json.dumps(engine.noise.to_dict(), allow_nan=False)
    if engine.choice is not None:
        assert engine.choice.chosen.agreement.count == len(GROUPS) - 1
        json.dumps(engine.choice.to_dict(), allow_nan=False)
    assert [math.isnan(one.centred) for one in engine.calibrated[:2]] in ([True, False], [])


def test_nothing_is_measured_where_nothing_is_a_number(
    trained: tuple[nn.Module, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(trained)
    lost = Influence(*[float("nan")] * 4, "exact")
    monkeypatch.setattr(type(engine.exact), "__call__", lambda self, batch: [lost] * len(batch["labels"]))
    with pytest.raises(ValueError, match="the influence of all 48 examples of the sample is no number"):
        engine.calibrate(SAMPLE, GROUPS)
    with pytest.raises(ValueError, match=r"loss of 32 of 32 references is no number after a step"):
        InfluenceScorer(trained[0], _Astray(), REFERENCES)


class _Astray:
    """An update that leads nowhere."""

    def __call__(self, params: Any, gradients: Any) -> Any:
        return {name: torch.full_like(param, torch.nan) for name, param in params.items()}


@pytest.mark.parametrize(("setting", "word"), [("method", "Exact"), ("reduction", "mean")])
def test_an_unknown_word_is_no_other_method(setting: str, word: str) -> None:
    settings: Any = {setting: word}
    with pytest.raises(ValueError, match=f"InfluenceScorer.{setting}: expected one of .*, found '{word}'"):
        InfluenceScorer(make_model("llama", "lora", torch.float32), AdamW(lr=1e-3), batches(1, seed=0), **settings)
