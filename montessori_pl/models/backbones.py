"""What can be no backbone, each kind in one sentence: what was found there, and what to give instead."""

import json
import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F16", "BF16", "F32", "F64")
"""How safetensors calls the types that hold weights as they are; others hold them quantized."""
LFS_POINTER = b"version https://git-lfs"
MAX_QUOTED = 300
"""Characters of an error of others in a sentence of ours; some of them list every architecture that there is."""


def check_files(backbone: str, location: str) -> None:
    """Refuse a local file, or a directory of other files than those of a whole model.

    Of files in the format safetensors the headers are read: they say whether a file is whole.

    Args:
        backbone: as the user calls it.
        location: hub id or local path.

    Raises:
        ValueError: it is a file, an adapter, holds no configuration, or its weights are cut, missing or quantized
            without a word in the configuration.
    """
    path = Path(location)
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
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise ValueError(
                f"the backbone {backbone!r} is a directory without {CONFIG}; give the one that holds it together with "
                "weights and tokenizer, as save_pretrained writes it"
            )
        quantized = _reads_quantized(path / CONFIG)
        for file in _weight_files(backbone, path):
            _check_safetensors(backbone, file, quantized)


def _weight_files(backbone: str, directory: Path) -> list[Path]:
    """The files of the format safetensors that hold the weights; none where they lie in another format.

    Raises:
        ValueError: the index cannot be read, or names files that are not there.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if not (directory / INDEX).is_file():
        return []
    try:
        names = sorted(set(json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (directory / name).is_file()]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{INDEX} of the backbone {backbone!r} does not say which file holds which weight; copy it anew"
        ) from error
    if missing:
        raise ValueError(
            f"the backbone {backbone!r} is not complete: {len(missing)} of the {len(names)} files that {INDEX} names "
            f"are not there (first: {missing[0]}); finish its download or copy"
        )
    return [directory / name for name in names]


def _check_safetensors(backbone: str, path: Path, quantized: bool) -> None:
    """Refuse a file that is cut, is none, or holds what only a quantizer could read.

    The format: eight bytes of a length, a JSON object of that length with the place of each tensor, the tensors.
    """
    file = f"{path.name} of the backbone {backbone!r}"
    with open(path, "rb") as opened:
        begin = opened.read(8)
        length, size = int.from_bytes(begin, "little"), path.stat().st_size
        if LFS_POINTER.startswith(begin) and begin:
            raise ValueError(f"{file} is a pointer of Git LFS and holds no weights; fetch them with `git lfs pull`")
        try:
            header: dict[str, Any] = json.loads(opened.read(min(length, size)))
            tensors = {name: one for name, one in header.items() if name != "__metadata__"}
            whole = 8 + length + max((one["data_offsets"][1] for one in tensors.values()), default=0)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file} is cut or no safetensors file ({size} bytes); download or copy it anew"
            ) from error
    if size < whole:
        raise ValueError(f"{file} is cut: {size} of {whole} bytes are there; download or copy it anew")
    strange = [(name, one["dtype"]) for name, one in tensors.items() if one["dtype"] not in FLOATS]
    if not quantized and (weights := [one for one in strange if one[0].endswith(".weight")]):
        name, dtype = weights[0]
        raise ValueError(
            f"{file} holds {len(weights)} weights as quantized numbers (first: {name}, {dtype}), and {CONFIG} has no "
            "quantization_config that says how they are read; give the model that it was made from"
        )


def _reads_quantized(path: Path) -> bool:
    """Whether a configuration says how quantized weights are read."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("quantization_config"))
    except (ValueError, AttributeError):  # the sentence about it is that of loading the configuration
        return True


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
            f"no {what} for the backbone {backbone!r}: give a hub id, a local directory, a GGUF file, "
            f"classroom/teacher or classroom/student ({_first_line(error)})"
        ) from error
    except ImportError as error:
        raise ValueError(
            f"the {what} of the backbone {backbone!r} needs a package that is not installed ({_first_line(error)})"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"the weights of the backbone {backbone!r} are damaged, or a pickle of more than weights, which could run "
            "any code and is not read; save the model with save_pretrained, which writes safetensors"
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
    """The first line, with the next one where it ends in a colon."""
    lines = re.sub(r"\x1b\[\d*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    line = f"{lines[0]} {lines[1].strip()}" if lines[0].rstrip().endswith(":") and len(lines) > 1 else lines[0]
    return line if len(line) <= MAX_QUOTED else f"{line[:MAX_QUOTED]}..."


def check_weights(backbone: str, report: Mapping[str, Any], what: str = "causal language model") -> None:
    """Refuse a checkpoint that leaves parameters without weights: Transformers would draw them at random.

    Weights that no parameter takes are told once, for they are ignored: a head of another use, or layers that the
    configuration does not count.

    Args:
        backbone: as the user calls it.
        report: what Transformers found: `missing_keys`, `unexpected_keys`, and `mismatched_keys` with both shapes.
        what: is made of them.

    Raises:
        ValueError: there are some, or weights of another shape.
    """
    if wrong := sorted(report["mismatched_keys"]):
        name, found, expected = wrong[0]
        raise ValueError(
            f"the checkpoint of the backbone {backbone!r} does not fit its {CONFIG}: {len(wrong)} weights have another "
            f"shape (first: {name}, {list(found)} where {list(expected)} is expected); are they of the same model?"
        )
    missing, unexpected = report["missing_keys"], report["unexpected_keys"]
    if unexpected and not missing:
        _tell_unexpected(backbone, len(unexpected), min(unexpected))
    if missing:
        raise ValueError(
            f"the checkpoint of the backbone {backbone!r} has no weights for {len(missing)} parameters of the {what} "
            f"(first: {min(missing)}), which would be random; is it a base model without its head, an "
            "encoder, or a part of a checkpoint?"
        )


@cache
def _tell_unexpected(backbone: str, count: int, first: str) -> None:
    """Say it once in a process, however often the model is loaded."""
    log.warning(
        "the checkpoint of the backbone %r holds %d weights that its %s has no place for (first: %s): they are ignored",
        *(backbone, count, CONFIG, first),
    )


def check_finite(name: str, model: "nn.Module") -> None:
    """Refuse weights that are no numbers: all that is computed with them would be none.

    Args:
        name: of the model, for a sentence.
        model: its weights are loaded.

    Raises:
        ValueError: a parameter holds NaN or infinity.
    """
    for parameter_name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.itemsize == 1 or not parameter.numel():
            continue  # quantized
        low, high = parameter.detach().aminmax()
        if not (low.isfinite() and high.isfinite()):
            raise ValueError(
                f"the weights of {name!r} hold NaN or infinity (first in {parameter_name}), so that nothing can be "
                "computed with them; copy the model anew, or take an earlier checkpoint of it"
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
