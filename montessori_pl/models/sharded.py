"""A language model whose weights are held in parts by several processes (FSDP2, `torch.distributed.fsdp.fully_shard`).

A layer's weights are gathered when it runs, and given back behind it. All others (embedding, head, norms) are gathered
at the beginning of a pass, and stay until its backward pass has ended. Whatever a pass computes with the model goes
through `Sharded`, so that all processes gather in the same order, however their batches are computed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


class Sharded(nn.Module):
    """Runs a pass on a model whose weights are in parts.

    Args:
        model: a causal language model of Transformers, with or without PEFT adapters; its parameters become parts.
        mesh: the processes.
        mixed: whether layers compute in bfloat16; parts and the sums of gradients stay in float32.
    """

    def __init__(self, model: nn.Module, mesh: DeviceMesh, mixed: bool) -> None:
        super().__init__()
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy()
        self.model = model
        for module in [*layers_of(model), self]:
            fully_shard(module, mesh=mesh, mp_policy=policy)

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        """What is computed while all weights can be used; it must run each layer once."""
        return compute()


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The modules that an architecture says must not be split: its layers.

    Raises:
        ValueError: it does not say.
    """
    top: Any = getattr(model, "get_base_model", lambda: model)()  # inside PEFT
    names = set(getattr(top, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    if not found:
        raise ValueError(
            f"{type(top).__name__} does not name its layers (_no_split_modules), so that its weights cannot be held in "
            "parts; set trainer.strategy to ddp"
        )
    return found


def whole_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The whole of each weight that is saved, by name, one after another; all processes must go through them.

    Of a model with an adapter these are the adapter's.
    """
    adapted, tied = hasattr(model, "peft_config"), set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if (tensor.requires_grad or not adapted) and id(tensor) not in tied:
            yield name, tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()
        tied.add(id(tensor))  # whose whole would be another tensor, and be saved twice
