"""Influence as a column of a Hugging Face data set.

    from montessori_pl.influence import AdamW, score_dataset

    scored = score_dataset(model, tokenizer, dataset, reference, AdamW(lr=1e-4))
    best = scored.sort("influence", reverse=True).select(range(1000))
    scored.to_json("scores.jsonl")

Rows are rendered as everything else here is: through `ChatTemplate`, with the mask made while rendering.
"""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from montessori_pl.data.chat_template import ChatTemplate, Rendered
from montessori_pl.data.formats import read_row
from montessori_pl.influence.functional import IGNORED, Batch
from montessori_pl.influence.results import Influence
from montessori_pl.influence.scorer import InfluenceScorer
from montessori_pl.influence.updates import UpdateRule

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
    chat_template = ChatTemplate(tokenizer, layout, getattr(model.config, "max_position_embeddings", None))
    pad_id = cast(int, tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
    device = next(model.parameters()).device

    def batches(rows: Iterable[dict[str, Any]]) -> list[Batch]:
        rendered = [_rendered(chat_template, row, number, max_length) for number, row in enumerate(rows)]
        parts = [rendered[at : at + batch_size] for at in range(0, len(rendered), batch_size)]
        return [_tensors(part, pad_id, device) for part in parts]

    groups = list(dataset[group_by]) if group_by is not None else list(range(len(dataset)))
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


def _rendered(chat_template: ChatTemplate, row: dict[str, Any], number: int, max_length: int) -> Rendered:
    rendered = chat_template.render(read_row(row, number).messages(), max_length)
    if not any(rendered.completion_mask):
        raise ValueError(f"row {number + 1} has no response within {max_length} tokens and the model's context")
    return rendered


def _tensors(rendered: Sequence[Rendered], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    width = max(len(one.input_ids) for one in rendered)
    ids = torch.full((len(rendered), width), pad_id)
    labels = torch.full((len(rendered), width), IGNORED)
    mask = torch.zeros((len(rendered), width), dtype=torch.long)
    for row, one in enumerate(rendered):
        tokens, length = torch.tensor(one.input_ids), len(one.input_ids)
        ids[row, :length], mask[row, :length] = tokens, 1
        labels[row, :length] = torch.where(torch.tensor(one.completion_mask), tokens, IGNORED)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}
