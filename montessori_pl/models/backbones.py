"""What can be no backbone, each kind in one sentence: what was found there, and what to give instead."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTER_CONFIG = "adapter_config.json"
MAX_QUOTED = 300
"""Characters of an error of others in a sentence of ours; some of them list every architecture that there is."""


def check_files(backbone: str, location: str) -> None:
    """Refuse a local file, or a directory of other files than those of a whole model.

    Args:
        backbone: as the user calls it.
        location: hub id or local path.

    Raises:
        ValueError: it is a file, an adapter, or holds GGUF files only.
    """
    path = Path(location)
    holds_gguf = path.is_dir() and not (path / "config.json").exists() and any(path.glob("*.gguf"))
    if path.suffix.lower() == ".gguf" or holds_gguf:
        raise ValueError(
            f"the backbone {backbone!r} is GGUF, a format for inference: quantized weights, which are neither trained "
            "nor measured here; give the model that it was made from (a hub id, or a directory with config.json and "
            "safetensors)"
        )
    if path.is_file():
        raise ValueError(
            f"the backbone {backbone!r} is a file; give the directory that holds it together with config.json and the "
            "tokenizer, as save_pretrained writes it"
        )
    if (path / ADAPTER_CONFIG).is_file():
        base = _base_of_adapter(path / ADAPTER_CONFIG)
        raise ValueError(
            f"the backbone {backbone!r} is a PEFT adapter of {base!r} and no whole model: merge it into its base "
            "(PeftModel.merge_and_unload), save that with the tokenizer, and give its directory; a teacher of the "
            "section teachers takes the two apart, as backbone and adapter"
        )


def _base_of_adapter(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path"))
    except (ValueError, AttributeError):
        return "an unknown model"


@contextmanager
def errors_in_a_sentence(backbone: str, what: str) -> Iterator[None]:
    """Inside, whatever Transformers or PEFT raises becomes a `ValueError` of one sentence.

    Args:
        backbone: as the user calls it.
        what: what is looked for, for example `tokenizer`.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"no {what} for the backbone {backbone!r}: give a hub id, a local directory, classroom/teacher or "
            f"classroom/student ({_first_line(error)})"
        ) from error
    except ImportError as error:
        raise ValueError(
            f"the {what} of the backbone {backbone!r} needs a package that is not installed ({_first_line(error)})"
        ) from error
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"the {what} of the backbone {backbone!r} comes with code of its own (auto_map), which is not run "
                "unasked; read that code, and if you trust it, set trust_remote_code: true beside the backbone"
            ) from error
        raise ValueError(
            f"the {what} of the backbone {backbone!r} cannot be loaded ({type(error).__name__}: {_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= MAX_QUOTED else f"{lines[0][:MAX_QUOTED]}..."


def check_weights(backbone: str, missing: set[str]) -> None:
    """Refuse a checkpoint that leaves parameters without weights: Transformers would draw them at random.

    Args:
        backbone: as the user calls it.
        missing: names of the parameters that were not in the checkpoint.

    Raises:
        ValueError: there are some.
    """
    if missing:
        raise ValueError(
            f"the checkpoint of the backbone {backbone!r} has no weights for {len(missing)} parameters of the causal "
            f"language model (first: {min(missing)}), which would be random; is it a base model without its head, an "
            "encoder, or a part of a checkpoint?"
        )


def check_vocabulary(backbone: str, tokenizer: "PreTrainedTokenizerBase", rows: int | None, written: list[int]) -> None:
    """Refuse a tokenizer that writes ids for which the model has no embedding.

    Special tokens that no conversation contains may lie beyond (Gemma 3 has such a one for images).

    Args:
        backbone: as the user calls it.
        tokenizer: its tokenizer.
        rows: the embeddings that the model has, where its configuration says so.
        written: ids that a conversation contains whatever its text, and those that end and pad it.

    Raises:
        ValueError: there are such ids.
    """
    added = tokenizer.added_tokens_decoder
    if rows is None or (len(tokenizer) <= rows and max([*added, *written], default=0) < rows):
        return
    special = {number for number, token in added.items() if token.special} - set(written)
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if reached := [(number, token) for number, token in beyond if number not in special]:
        number, token = reached[0]
        raise ValueError(
            f"the tokenizer of the backbone {backbone!r} writes {len(reached)} token ids for which the model has no "
            f"embedding (vocab_size {rows}; the first is {token!r}, id {number}); use the tokenizer that the model was "
            "trained with, or resize its embeddings (resize_token_embeddings) and save it"
        )
