"""Influence as a column of a Hugging Face data set.

    from montessori_pl.influence import AdamW, score_dataset

    scored = score_dataset(model, tokenizer, dataset, reference, AdamW(lr=1e-4))
    best = scored.sort("influence", reverse=True).select(range(1000))
    scored.to_json("scores.jsonl")

Rows are rendered as everything else here is: through `ChatTemplate`, with the mask made while rendering.
"""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from montessori_pl.data.chat_template import ChatTemplate, LossOn
from montessori_pl.data.formats import read_row
from montessori_pl.influence.functional import Batch
from montessori_pl.influence.packing import padded
from montessori_pl.influence.results import Influence
from montessori_pl.influence.scorer import InfluenceScorer
from montessori_pl.influence.updates import UpdateRule
from montessori_pl.losses import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def score_dataset(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    dataset: "Dataset",
    reference: Iterable[dict[str, Any]],
    update: UpdateRule,
    *,
    layout: str = "auto",
    loss_on: LossOn = "all",
    group_by: str | None = None,
    max_length: int = 1024,
    batch_size: int = 16,
    calibration_examples: int = 48,
    **settings: Any,
) -> "Dataset":
    """Score every row of a data set; no trainer is needed.

    Args:
        model: a causal language model of Transformers, with or without PEFT adapters, on its device; its trainable
            parameters move.
        tokenizer: the model's.
        dataset: rows in any layout that we read: `messages`, `instruction`/`response`, `prompt`/`completion`, ...
        reference: rows of the reference set, likewise.
        update: the optimizer's rule, for example `AdamW(lr=1e-4)`.
        layout: chat layout: `auto` (the tokenizer's own), the name of a shipped one, or the path of a Jinja file.
        loss_on: of which answers of a conversation the loss is taken: `all`, or the `last` one.
        group_by: column that says which rows answer the same prompt; such rows must follow each other.
        max_length: longest conversation in tokens; longer ones are cut on the right.
        batch_size: rows in one backward pass.
        calibration_examples: the first so many rows are also scored exactly, to choose or to check the method.
        settings: of `InfluenceScorer`, for example `method="first_order"`.

    Returns:
        the data set with the columns `influence` (centred, in nats per token; higher helps more),
        `influence_standard_error` and `influence_method`; its description holds the agreement report as JSON.

    Raises:
        ValueError: a row cannot be read or has no response within `max_length`; the sentence says which.
    """
    chat_template = ChatTemplate(
        tokenizer, layout, getattr(model.config, "max_position_embeddings", None), loss_on=loss_on
    )
    device = next(model.parameters()).device

    def batches(rows: Iterable[dict[str, Any]]) -> list[Batch]:
        examples = [_example(chat_template, row, number, max_length, device) for number, row in enumerate(rows)]
        return [padded(examples[at : at + batch_size]) for at in range(0, len(examples), batch_size)]

    groups = list(dataset[group_by]) if group_by is not None else list(range(len(dataset)))
    if settings.get("method", "auto") == "auto" and len(dataset) <= calibration_examples:
        settings["method"] = "exact"  # choosing would take as much
    scorer = InfluenceScorer(model, update, batches(reference), **settings)
    probes = batches(dataset)
    num_calibrating = -(-min(calibration_examples, len(dataset)) // batch_size)
    choice = scorer.calibrate(probes[:num_calibrating], groups[: num_calibrating * batch_size])
    influences: list[Influence] = []
    for number, batch in enumerate(probes):
        influences += scorer(batch, groups[number * batch_size : (number + 1) * batch_size])

    scored = (
        dataset.add_column("influence", [one.centred for one in influences])
        .add_column("influence_standard_error", [one.centred_standard_error for one in influences])
        .add_column("influence_method", [one.method for one in influences])
    )
    if choice is not None:
        scored.info.description = json.dumps(choice.to_dict())
    return scored


def _example(
    chat_template: ChatTemplate, row: dict[str, Any], number: int, max_length: int, device: torch.device
) -> Batch:
    """One row by itself, shapes (1, T)."""
    rendered = chat_template.render_example(read_row(row, number), max_length)
    if not any(rendered.completion_mask):
        raise ValueError(f"row {number + 1} has no response within {max_length} tokens and the model's context")
    ids = torch.tensor([rendered.input_ids], device=device)
    labels = ids.where(torch.tensor([rendered.completion_mask], device=device), IGNORED)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
