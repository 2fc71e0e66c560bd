"""GGUF files as backbones: read once, and kept as an ordinary checkpoint in the cache.

Transformers dequantizes such a file each time that it reads one, a minute for 135 million parameters. What it has read
is not ready to be trained, and the copy mends it:

* the configuration still calls the weights quantized, so that they could be neither trained nor saved;
* the tokenizer of a Llama takes the token that begins a sequence for the one that ends it (Transformers 5.17);
* the file itself may name another end than the one that its chat template writes behind an answer.

A copy is keyed by the content of its file.
"""

import functools
import hashlib
import importlib.util
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from montessori_pl.classroom.names import cached
from montessori_pl.data.chat_template import ChatTemplate
from montessori_pl.data.special_tokens import special_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

SUFFIX = ".gguf"
MAGIC = b"GGUF"
_PART = re.compile(r"-\d{5}-of-\d{5}$")
"""How the name of one part of a model in several files ends."""
_MAX_QUOTED = 300


def gguf_file(backbone: str) -> Path | None:
    """The GGUF file that a backbone means, a file or a directory that holds one and no configuration; else none.

    Raises:
        ValueError: a directory holds several.
    """
    path = Path(backbone)
    if path.suffix.lower() == SUFFIX:
        return None if path.is_dir() else path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(one for one in path.iterdir() if one.suffix.lower() == SUFFIX)
    if len(found) > 1:
        raise ValueError(
            f"the backbone {backbone!r} is a directory of {len(found)} GGUF files "
            f"({', '.join(one.name for one in found)}); give the path of one of them"
        )
    return found[0] if found else None


def checkpoint(path: Path) -> Path:
    """The directory of an ordinary checkpoint with the content of a GGUF file, which is made if it is not there.

    Weights are in float32, as they are dequantized.

    Raises:
        ValueError: the file is not there, cut or of another format, its architecture is not known, weights are missing
            in it, or the package `gguf` is not installed.
    """
    _check_file(path)
    import transformers

    def build(directory: Path) -> None:
        log.warning("reading %s: once, a minute and 400 MB of cache for each 100 million parameters", path)
        _convert(path, directory)

    stat = path.stat()
    digest = _digest(path.resolve(), stat.st_size, stat.st_mtime_ns)
    return cached(f"gguf-{digest}-{transformers.__version__}", build)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}; correct the path of the backbone")
    with open(path, "rb") as file:
        begin = file.read(len(MAGIC))
    if begin != MAGIC:
        raise ValueError(
            f"the backbone {str(path)!r} is no GGUF file: it begins with {begin!r} and not with {MAGIC!r}; download it "
            "anew (a pointer of Git LFS is fetched by `git lfs pull`)"
        )
    if _PART.search(path.stem):
        raise ValueError(
            f"the backbone {str(path)!r} is one part of a model in several files, which is not read; join them with "
            "`llama-gguf-split --merge`"
        )


@functools.lru_cache(maxsize=16)
def _digest(path: Path, size: int, changed: int) -> str:
    """Some digits of the content; `size` and `changed` say whether it is the one that was read before."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _convert(path: Path, directory: Path) -> None:
    """Write the checkpoint into an empty directory."""
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(
            f"the backbone {str(path)!r} is GGUF, which needs the package gguf; run: pip install 'montessori-pl[gguf]'"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(path.absolute().parent), path.name
    with _in_a_sentence(path):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=torch.float32, output_loading_info=True
        )
    model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    if missing := sorted(report["missing_keys"]):  # a copy would hide it: there they are weights like any other
        raise ValueError(
            f"the backbone {str(path)!r} has no weights for {len(missing)} parameters of its model (first: "
            f"{missing[0]}), which would be random; download it anew, or give the model that it was made from"
        )
    _mend_end(path, tokenizer, model.config.eos_token_id)
    del model.config.quantization_config  # by now the weights are ordinary ones
    for config in (model.config, model.generation_config):
        assert config is not None
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.config._name_or_path = ""  # the bytes must not depend on where the file lies
    # The same weights in a model that was not read from GGUF: what was cannot be saved.
    with torch.device("meta"):
        plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _mend_end(path: Path, tokenizer: "PreTrainedTokenizerBase", end_id: int | None) -> None:
    """Let the end-of-sequence token be the one that the chat template writes behind an answer, else the file's own.

    Args:
        path: of the file.
        tokenizer: as Transformers reads it.
        end_id: the end of a sequence, as the file says it.
    """
    if end_id is not None:
        tokenizer.eos_token = str(tokenizer.convert_ids_to_tokens(end_id))
    if tokenizer.eos_token is None:
        return
    eos = str(tokenizer.eos_token)
    end = _end_of_turn(tokenizer)
    if end is not None and end != eos:
        log.warning("%s: the end-of-sequence token is %s, which ends a turn, and not %s as it says", path, end, eos)
        tokenizer.eos_token = end
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The special token that the chat template writes behind an answer; none where it writes none."""
    if not tokenizer.chat_template:
        return None
    try:
        end = ChatTemplate(tokenizer).form.end
    except ValueError:  # whoever uses this template is told so; the recipe may name another one
        return None
    return end if end in special_token_ids(tokenizer) else None


@contextmanager
def _in_a_sentence(path: Path) -> Iterator[None]:
    """Whatever is raised while a file is read becomes a `ValueError` of one sentence."""
    try:
        yield
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")[:_MAX_QUOTED]
        raise ValueError(
            f"the backbone {str(path)!r} cannot be read ({type(error).__name__}: {line}); the file is damaged, or of "
            "an architecture or a quantization that Transformers does not read from GGUF: download it anew, or give "
            "the model that it was made from"
        ) from error
