"""A Hugging Face data set gets a column of influence, without a trainer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import save_tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.influence import (
    AdamW,
    Batch,
    ExactInfluence,
    Influence,
    ReferenceSet,
    ResponseLosses,
    dataset,
    score_dataset,
    trainable_parameters,
)

ROWS = [
    {"instruction": f"say {letter}", "response": letter * length}
    for letter, length in zip("abcdef", range(1, 7), strict=True)
]
REFERENCE = [
    {"messages": [{"role": "user", "content": "say g"}, {"role": "assistant", "content": "g"}]},
    {"messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "nobody knows."}]},
    {"prompt": "say a", "completion": "aa"},
]


@pytest.fixture
def model(tmp_path: Path) -> PeftModel:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path))
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def exact_one_by_one(model: PeftModel, update: AdamW) -> list[float]:
    """Each row and each reference rendered and scored by itself."""
    chat_template = ChatTemplate(tiny_tokenizer())

    def batch(question: str, answer: str) -> dict[str, torch.Tensor]:
        one = chat_template.render([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
        ids = torch.tensor([one.input_ids])
        labels = ids.where(torch.tensor([one.completion_mask]), -100)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    model.eval()
    loss = ResponseLosses(model)
    references = ReferenceSet(loss, [batch("say g", "g"), batch("why?", "nobody knows."), batch("say a", "aa")])
    engine = ExactInfluence(loss, trainable_parameters(model), update, references)
    return [engine(batch(row["instruction"], row["response"]))[0].centred for row in ROWS]


def test_the_column_holds_exact_influence(model: PeftModel) -> None:
    update = AdamW(lr=1e-2)
    scored = score_dataset(
        model, tiny_tokenizer(), Dataset.from_list(ROWS), REFERENCE, update, method="exact", batch_size=4
    )

    assert scored["influence"] == pytest.approx(exact_one_by_one(model, update), abs=2e-6)
    assert max(map(abs, scored["influence"])) > 1e-3
    assert set(scored["influence_method"]) == {"exact"}
    assert [row["instruction"] for row in scored] == [row["instruction"] for row in ROWS]


def test_the_report_says_what_was_chosen(model: PeftModel, tmp_path: Path) -> None:
    data, update = Dataset.from_list(ROWS), AdamW(lr=1e-5)
    scored = score_dataset(model, tiny_tokenizer(), data, REFERENCE, update, calibration_examples=3)
    report = json.loads(scored.info.description)

    assert report["chosen"]["method"] in ("exact", "first order")
    assert {candidate["method"] for candidate in report["candidates"]} == {"exact", "first order"}
    scored.to_json(tmp_path / "scores.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    # JSON written by Arrow has ten digits behind the point.
    assert [line["influence"] for line in lines] == pytest.approx(list(scored["influence"]), rel=1e-4)


def test_the_model_is_left_as_it_was(model: PeftModel) -> None:
    model.train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    score_dataset(model, tiny_tokenizer(), Dataset.from_list(ROWS), REFERENCE, AdamW(lr=1e-2))

    assert model.training
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"instruction": "say", "response": ""}, r"row 2 cannot be scored: empty response"),
        ({"question_text": "say"}, r"row 2"),
        ({"instruction": "a" * 200, "response": "b"}, r"row 2 has no response within 1024 tokens and the model's con"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(model: PeftModel, row: dict[str, str], sentence: str) -> None:
    rows = [{"instruction": "say a", "response": "a"}, row]
    with pytest.raises(ValueError, match=sentence):
        score_dataset(model, tiny_tokenizer(), Dataset.from_list(ROWS), rows, AdamW(lr=1e-2))


def test_there_must_be_rows_and_room_for_the_columns(model: PeftModel) -> None:
    """Said before anything is computed: this model would not even run."""
    data, update = Dataset.from_list(ROWS), AdamW(lr=1e-2)
    scored = score_dataset(model, tiny_tokenizer(), data, REFERENCE, update, method="exact")
    with pytest.raises(ValueError, match=r"has a column 'influence' already: remove it, or give .* by `column`"):
        score_dataset(torch.nn.Module(), tiny_tokenizer(), scored, REFERENCE, update)
    with pytest.raises(ValueError, match="the data set has no rows"):
        score_dataset(torch.nn.Module(), tiny_tokenizer(), data.select([]), REFERENCE, update)
    again = score_dataset(model, tiny_tokenizer(), scored, REFERENCE, update, method="exact", column="later")
    assert again["later"] == again["influence"]
    assert again.column_names[-3:] == ["later", "later_standard_error", "later_method"]


def test_one_split_is_asked_for(model: PeftModel) -> None:
    data, update = Dataset.from_list(ROWS), AdamW(lr=1e-2)
    splits = DatasetDict({"train": data, "test": data})
    with pytest.raises(ValueError, match=r"data set is a DatasetDict of splits \('train', 'test'\): give one of them"):
        score_dataset(model, tiny_tokenizer(), splits, REFERENCE, update)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"reference set is a DatasetDict of splits"):
        score_dataset(model, tiny_tokenizer(), data, splits, update)
    for rows in (ROWS, data.to_iterable_dataset()):
        with pytest.raises(ValueError, match=r"is a (list|IterableDataset), .* `Dataset.from_list\(rows\)`"):
            score_dataset(model, tiny_tokenizer(), rows, REFERENCE, update)  # type: ignore[arg-type]


def test_without_calibration_auto_is_exact(model: PeftModel) -> None:
    update = AdamW(lr=1e-2)
    scored = score_dataset(
        model, tiny_tokenizer(), Dataset.from_list(ROWS), REFERENCE, update, calibration_examples=0, batch_size=4
    )
    assert scored["influence"] == pytest.approx(exact_one_by_one(model, update), abs=2e-6)
    assert set(scored["influence_method"]) == {"exact"}


class Asked:
    """A scorer that keeps what it is asked. A row is known by the length of its response and end token."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.calibrated: list[int] = []
        self.scored: list[tuple[list[int], list[int]]] = []

    def new(self, *arguments: Any, **settings: Any) -> "Asked":
        return self

    def calibrate(self, batches: Sequence[Batch], groups: Sequence[int]) -> None:
        self.calibrated += [row for batch in batches for row in self.rows(batch)]
        assert len(groups) == len(self.calibrated)

    def __call__(self, batch: Batch, groups: Sequence[int]) -> list[Influence]:
        self.scored.append((self.rows(batch), list(groups)))
        return [Influence(0.0, 0.0, 0.0, 0.0, "none") for _ in groups]

    def rows(self, batch: Batch) -> list[int]:
        return [int((labels != -100).sum()) - 2 for labels in batch["labels"]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr(dataset, "InfluenceScorer", asked.new)
    return asked


def test_rows_of_one_prompt_are_in_one_batch(model: PeftModel, asked: Asked) -> None:
    """Or the best of a prompt would be looked for among some of its rows."""
    rows = Dataset.from_list(ROWS).add_column("prompt_of", ["p", "q", "q", "q", "r", "s"])
    score_dataset(
        model,
        tiny_tokenizer(),
        rows,
        REFERENCE,
        AdamW(lr=1e-2),
        group_by="prompt_of",
        batch_size=2,
        calibration_examples=2,
    )
    assert asked.scored == [([0], [0]), ([1, 2, 3], [1, 1, 1]), ([4, 5], [2, 3])]
    assert {1, 2, 3} <= set(asked.calibrated) or not {1, 2, 3} & set(asked.calibrated)


def test_calibration_is_on_rows_drawn_at_random(model: PeftModel, asked: Asked) -> None:
    drawn = []
    for seed in range(4):
        asked.calibrated = []
        score_dataset(
            model,
            tiny_tokenizer(),
            Dataset.from_list(ROWS),
            REFERENCE,
            AdamW(lr=1e-2),
            calibration_examples=3,
            seed=seed,
        )
        assert len(set(asked.calibrated)) == 3
        drawn.append(sorted(asked.calibrated))
    assert any(rows != [0, 1, 2] for rows in drawn)
