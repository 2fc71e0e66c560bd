"""What a training on text can adapt in a model that also reads images or sound."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def modules_without_text(model: "PreTrainedModel") -> list[str]:
    """Names of the topmost modules that text does not pass: towers for images or sound and their projectors.

    Their parameters never get a gradient from text, so that no optimizer has moments of them and no probe can move
    them. There are none in a model that reads text only.

    Args:
        model: a model of Transformers, without adapters.
    """
    if model.config.get_text_config() is model.config:
        return []
    passed = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
    return list(_without(model, [one for one in passed if one is not None], ""))


def freeze_what_text_does_not_pass(model: "PreTrainedModel") -> None:
    """Leave only those parameters trainable that text passes."""
    for name in modules_without_text(model):
        model.get_submodule(name).requires_grad_(False)


def _without(module: "nn.Module", passed: Collection["nn.Module"], prefix: str) -> Iterator[str]:
    for name, child in module.named_children():
        if any(one is child for one in passed):
            continue
        inside = set(child.modules())
        if any(one in inside for one in passed):
            yield from _without(child, passed, f"{prefix}{name}.")
        elif next(child.parameters(), None) is not None:
            yield prefix + name
