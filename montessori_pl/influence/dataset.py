"""Influence as a column of a Hugging Face data set.

    from montessori_pl.influence import AdamW, score_dataset

    scored = score_dataset(model, tokenizer, dataset, reference, AdamW(lr=1e-4))
    best = scored.sort("influence", reverse=True).select(range(1000))
    scored.to_json("scores.jsonl")

Rows are rendered as everything else here is: through `ChatTemplate`, with the mask made while rendering.
"""

import itertools
import json
import random
from collections.abc import Iterable, Mapping, Sequence
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
    column: str = "influence",
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
        batch_size: rows in one backward pass; rows of one prompt stay together.
        calibration_examples: so many rows, drawn at random, are also scored exactly, to choose or to check the method;
            those of one prompt together. With 0 nothing is compared: `auto` is exact then, and nothing is refined.
        column: name of the column with the influence; those of the others begin with it.
        settings: of `InfluenceScorer`, for example `method="first_order"`.

    Returns:
        the data set with the columns `influence` (centred, in nats per token; higher helps more),
        `influence_standard_error` and `influence_method`; its description holds the agreement report as JSON.

    Raises:
        ValueError: what is given is no data set, or several; there are no rows, or columns of these names already; or
            a row cannot be read or has no response within `max_length`; the sentence says which.
    """
    names = column, f"{column}_standard_error", f"{column}_method"
    _check(dataset, reference, names)
    chat_template = ChatTemplate(
        tokenizer, layout, getattr(model.config, "max_position_embeddings", None), loss_on=loss_on
    )
    device = next(model.parameters()).device

    def examples(rows: Iterable[dict[str, Any]]) -> list[Batch]:
        return [_example(chat_template, row, number, max_length, device) for number, row in enumerate(rows)]

    def batches(rows: Sequence[Batch], groups: Sequence[Sequence[int]]) -> list[Batch]:
        return [padded([rows[number] for number in batch]) for batch in _batches(groups, batch_size)]

    groups = _groups(dataset[group_by] if group_by is not None else range(len(dataset)))
    group_of = [number for number, group in enumerate(groups) for _ in group]
    if settings.get("method", "auto") == "auto" and len(dataset) <= calibration_examples:
        settings["method"] = "exact"  # choosing would take as much
    references, probes = examples(reference), examples(dataset)
    scorer = InfluenceScorer(model, update, batches(references, _groups(range(len(references)))), **settings)
    drawn = _sample(groups, calibration_examples, settings.get("seed", 0))
    calibrating = [group_of[row] for group in drawn for row in group]
    choice = scorer.calibrate(batches(probes, drawn), calibrating) if drawn else None
    influences: list[Influence] = []
    for batch in batches(probes, groups):
        first = len(influences)
        influences += scorer(batch, group_of[first : first + len(batch["labels"])])

    scored = (
        dataset.add_column(names[0], [one.centred for one in influences])
        .add_column(names[1], [one.centred_standard_error for one in influences])
        .add_column(names[2], [one.method for one in influences])
    )
    if choice is not None:
        scored.info.description = json.dumps(choice.to_dict())
    return scored


def _check(dataset: "Dataset", reference: Iterable[dict[str, Any]], names: Sequence[str]) -> None:
    """Look, before any work, at whether there is something to score and room for the scores.

    Raises:
        ValueError: there is not.
    """
    from datasets import Dataset

    for what, given in {"data set": dataset, "reference set": reference}.items():
        if isinstance(given, Mapping):
            splits = ", ".join(map(repr, given)) or "none"
            raise ValueError(f"the {what} is a {type(given).__name__} of splits ({splits}): give one of them")
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"the data set is a {type(dataset).__name__}, and columns are added to a `datasets.Dataset`: make one by "
            "`Dataset.from_list(rows)`, or load it without `streaming`"
        )
    if not len(dataset):
        raise ValueError("the data set has no rows, so that there is nothing to score")
    if there := [name for name in names if name in dataset.column_names]:
        raise ValueError(
            f"the data set has a column {there[0]!r} already: remove it, or give the new ones another name by `column`"
        )


def _groups(keys: Iterable[Any]) -> list[list[int]]:
    """The rows that follow each other under one key."""
    runs = itertools.groupby(enumerate(keys), key=lambda numbered: numbered[1])
    return [[row for row, _ in run] for _, run in runs]


def _batches(groups: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Whole groups in batches of so many rows at most; a larger group is a batch of its own."""
    batches: list[list[int]] = []
    for group in groups:
        if not batches or len(batches[-1]) + len(group) > batch_size:
            batches.append([])
        batches[-1] += group
    return batches


def _sample(groups: Sequence[list[int]], num_rows: int, seed: int) -> list[list[int]]:
    """Groups drawn at random, of so many rows together (or all there are): the first rows may be of one kind."""
    order = random.Random(seed).sample(groups, len(groups))
    before = itertools.accumulate((len(group) for group in order), initial=0)
    return [group for group, count in zip(order, before, strict=False) if count < num_rows]


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
