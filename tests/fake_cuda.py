"""CUDA tensors on a machine without a GPU: their data lie in the CPU's memory, and devices must match as on a GPU.

    with fake_cuda():
        model.to("cuda")
        model(input_ids=ids.to("cuda"))     # computed on the CPU, to the last digit
        model(input_ids=ids)                # RuntimeError: Expected all tensors to be on the same device

PyTorch's own `FakeTensorMode` has no data, so that whatever reads a number (`tolist`, `nonzero`, a mask as an index)
ends there, and without a CUDA build it takes no gradients. These tensors have their numbers, and what is computed with
them can be compared: to PyTorch they are on the CPU, and only Python is told that they are not.

Not as on a GPU: memory, streams, random numbers and the digits of its kernels; and `Module.to` gives each tied weight a
tensor of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self
from unittest import mock

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
"""Operations whose indices may be on the CPU while the data are on a GPU."""


class FakeCudaTensor(Tensor):
    """A tensor that stands for one on `cuda:0`; `held` has its data."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # `FakeCuda` does it all

    @staticmethod
    def __new__(cls, held: Tensor) -> Self:
        """Stand for a tensor of the CPU."""
        tensor: Self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=CPU
        )
        tensor.held = held
        return tensor

    def __repr__(self, **kwargs: Any) -> str:
        """Data and device."""
        return f"FakeCudaTensor({self.held})"

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute on the CPU what the devices allow."""
        return compute(function, args, kwargs or {}, None)


class Operations(TorchDispatchMode):
    """Computes every operation on the CPU, if its tensors are on one device."""

    target: torch.device | None = None
    """Where the results go, while tensors are made or moved."""
    beside: torch.device | None = None
    """Where the tensors are of the function that is running."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute on the CPU what the devices allow."""
        made = not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs)))
        return compute(function, args, kwargs or {}, self.beside if made and self.target is None else self.target)

    @contextmanager
    def onto(self, device: torch.device) -> Iterator[None]:
        """Inside, results are on this device."""
        before, self.target = self.target, device
        try:
            yield
        finally:
            self.target = before

    @contextmanager
    def within(self, arguments: Any) -> Iterator[None]:
        """Inside a function of these arguments, new tensors are where they are."""
        leaves = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        before, self.beside = self.beside, CUDA if any(device_of(leaf) == CUDA for leaf in leaves) else self.beside
        try:
            yield
        finally:
            self.beside = before


class Devices(TorchFunctionMode):
    """Says where tensors are, and makes and moves them.

    Args:
        operations: what computes.
    """

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer what asks for devices or names one; leave the rest to `Operations`."""
        kwargs = dict(kwargs or {})
        if function == Tensor.device.__get__:  # type: ignore[attr-defined]
            return device_of(args[0])
        if function == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return device_of(args[0]) == CUDA
        if function == Tensor.tolist:
            return self.moved(args[0], CPU).tolist()
        if function == Tensor.cpu:
            return self.moved(args[0], CPU)
        if function == Tensor.cuda:
            return self.moved(args[0], CUDA)
        if function == Tensor.to:
            return self.to(*args, **kwargs)
        if function == torch.as_tensor and isinstance(args[0], Tensor):
            return self.to(args[0], **kwargs)
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if device is not None and device.type in ("cpu", "cuda"):
            with self.operations.onto(device):
                return function(*args, **{**kwargs, "device": CPU})
        with self.operations.within((args, kwargs)):
            return function(*args, **kwargs)

    def to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`Tensor.to` with a device, a type, both, or a tensor that has them."""
        named = [*args, *kwargs.values()]
        for other in named:
            if isinstance(other, Tensor):
                return self.moved(tensor, device_of(other)).to(other.dtype)
        device = next((one for one in named if isinstance(one, str | torch.device)), None)
        dtype = next((one for one in named if isinstance(one, torch.dtype)), tensor.dtype)
        if device is not None and torch.device(device).type not in ("cpu", "cuda"):  # weights without data, for example
            return tensor.to(*args, **kwargs)
        return (self.moved(tensor, torch.device(device)) if device is not None else tensor).to(dtype)

    def moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        """The tensor on a device, itself if it is there already."""
        if device_of(tensor).type == device.type:
            return tensor
        with self.operations.onto(device):
            return torch.clone(tensor)


def compute(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], target: torch.device | None) -> Any:
    """One operation: look at the devices, compute on the CPU, and wrap what a GPU would hold.

    Raises:
        RuntimeError: the tensors are on different devices.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if target is None:
        target = CUDA if any(isinstance(tensor, FakeCudaTensor) for tensor in tensors) else CPU
        check_devices(function, tensors, args)
    args, kwargs = tree_map(lambda leaf: leaf.held if isinstance(leaf, FakeCudaTensor) else leaf, (args, kwargs))
    result = function(*args, **kwargs)
    if target.type == "cpu":
        return result
    # What an operation changes in place stays the tensor that it was.
    known = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, FakeCudaTensor)}

    def wrapped(leaf: Any) -> Any:
        return (known[id(leaf)] if id(leaf) in known else FakeCudaTensor(leaf)) if type(leaf) is Tensor else leaf

    return tree_map(wrapped, result)


def check_devices(function: Any, tensors: list[Tensor], args: tuple[Any, ...]) -> None:
    """Refuse what a GPU would refuse; the CPU may give numbers in tensors without dimensions, and indices."""
    if function in (aten.copy_.default, aten._has_compatible_shallow_copy_type.default):
        return
    if function in INDEXING:
        indices = {id(leaf) for leaf in tree_leaves(args[1])}
        tensors = [one for one in tensors if id(one) not in indices or isinstance(one, FakeCudaTensor)]
    cuda = [isinstance(one, FakeCudaTensor) for one in tensors]
    cpu = [not on_cuda and one.dim() > 0 for one, on_cuda in zip(tensors, cuda, strict=True)]
    if any(cuda) and any(cpu):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {CUDA} and cpu in {function}")


def device_of(tensor: Tensor) -> torch.device:
    """Where a tensor claims to be, also inside of `torch.func`."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return CUDA if isinstance(tensor, FakeCudaTensor) else tensor.device


@contextmanager
def fake_cuda(free_bytes: int = 2**34) -> Iterator[torch.device]:
    """Inside, there is a CUDA device with so many free bytes, and it is the accelerator that is found."""
    operations = Operations()
    with (
        mock.patch("torch.accelerator.current_accelerator", return_value=CUDA),
        # Parameters are made anew: what is in the CPU's cannot become what stands for another.
        mock.patch("torch.__future__._overwrite_module_params_on_conversion", True),
        mock.patch("torch.accelerator.get_memory_info", return_value=(free_bytes, 2 * free_bytes)),
        mock.patch("torch.accelerator.memory_reserved", return_value=0),
        mock.patch("torch.accelerator.memory_allocated", return_value=0),
        # Asks the device for its stream.
        mock.patch("torch.optim.Optimizer._accelerator_graph_capture_health_check"),
        operations,
        Devices(operations),
    ):
        yield CUDA


class FakeCudaAccelerator(CPUAccelerator):
    """Lets a Lightning trainer put its module and its batches on the device that is not there."""

    def setup_device(self, device: torch.device) -> None:
        """Start nothing."""


class FakeCudaStrategy(SingleDeviceStrategy):
    """Loads models on the CPU and moves them, for to load them where they go is to ask CUDA for its memory."""

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        """Leave the default device as it is."""
        yield


def on_fake_cuda() -> dict[str, Any]:
    """Arguments of a trainer that works on the device that is not there."""
    strategy = FakeCudaStrategy(device=CUDA, accelerator=FakeCudaAccelerator())
    return {"strategy": strategy, "accelerator": "auto"}
