"""`trainer.strategy: fsdp2`: each process holds a part of every weight, of its gradient and of its moments.

Lightning's `ModelParallelStrategy` sets up the processes, and the module shards itself (`models/sharded.py`). What it
leaves on the disk is what one process would leave: whole weights and moments, in one file. So a training may go on with
another number of processes or without sharding, and influence finds the moments of a warm-up where they always are.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

FSDP2 = "fsdp2"
"""The strategy's name."""


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded data parallelism over all processes (`torch.distributed.fsdp.fully_shard`)."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """By `load_optimizer_state_dict`."""
        return True

    def setup_environment(self) -> None:
        """All processes share the weights."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights that are trained, in the first process; all processes must call this."""
        assert self.lightning_module is not None
        named = self.lightning_module.named_parameters()
        return self._whole({name: one.detach() for name, one in named if one.requires_grad})

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state, as an optimizer of whole weights has it, in the first process; all must call this."""
        state = getattr(optimizer, "optimizer", optimizer).state_dict()
        return {**state, "state": {place: self._whole(moments) for place, moments in state["state"].items()}}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """One file, by the first process."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Each process reads the parts that it needs; what a machine's processes have in common is read once."""
        found: dict[str, Any] = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=False)
        return found

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give every process its part."""
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        with torch.no_grad():
            for name, whole in checkpoint["state_dict"].items():
                parameters[name].copy_(part_of(whole, parameters[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give every process its part."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [one for group in optimizer.param_groups for one in group["params"]]
            state = {
                place: {name: part_of(value, parameters[place]) for name, value in moments.items()}
                for place, moments in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})

    def _whole(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Gathered one after another, and kept in the first process alone."""
        found = {}
        for name, tensor in tensors.items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.is_global_zero:
                found[name] = whole.cpu() if isinstance(whole, Tensor) else whole
        return found


def part_of(whole: Any, parameter: Tensor) -> Any:
    """The part of a whole tensor that this process holds of a parameter of its shape; what has another one is whole."""
    if not isinstance(parameter, DTensor) or not isinstance(whole, Tensor) or whole.shape != parameter.shape:
        return whole
    # Every process has read the whole of it: nothing is sent.
    whole = whole.to(parameter.to_local().device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def strategy_name(strategy: Any) -> str:
    """How the section `trainer` calls a strategy: its name, or that of its class.

    Args:
        strategy: a name, a mapping with a `class_path`, what that has become, or nothing.
    """
    if isinstance(strategy, Mapping):
        named = str(strategy.get("class_path", "")).rpartition(".")[2]
    else:
        named = type(strategy).__name__ if isinstance(strategy, Strategy) else str(strategy)
    return FSDP2 if named == FSDP2Strategy.__name__ else named


def register_strategies() -> None:
    """Let the trainer know the strategy by its name."""
    StrategyRegistry.register(FSDP2, FSDP2Strategy, description="weights and moments in parts", override=True)
