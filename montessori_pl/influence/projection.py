"""A random projection of gradients to a few dimensions that keeps their inner products in expectation.

Coordinates are shuffled, given random signs, and dealt into as many sums as there are dimensions (feature hashing,
arXiv 0902.2206, with sums of equal size). That takes one pass over a gradient, where a matrix of random signs would
take one for each dimension; its memory is nine bytes for each parameter. For rows x and y with projections s(x) and
s(y), E[s(x) s(y)] is x y, and the standard deviation is at most |x| |y| sqrt(2 / D).

Shapes: B examples, P trained parameters, D dimensions.
"""

import torch
from torch import Tensor

from montessori_pl.influence.updates import Params


class GradientProjection:
    """Projects the gradients of these parameters, everywhere in the same way.

    Args:
        params: the trained parameters, by name.
        dim: D.
        seed: of the shuffle and the signs.
    """

    def __init__(self, params: Params, dim: int, seed: int = 0) -> None:
        size = sum(param.numel() for param in params.values())
        device = next(iter(params.values())).device
        generator = torch.Generator().manual_seed(seed)
        padded = -(-size // dim) * dim
        self.dim = dim
        self._padding = padded - size
        self._order = torch.randperm(padded, generator=generator).to(device)
        self._signs = (2 * torch.randint(2, (padded,), generator=generator, dtype=torch.int8) - 1).to(device)

    def __call__(self, gradients: Params) -> Tensor:
        """The projections (B, D) of gradients whose tensors have a leading dimension B."""
        rows = torch.cat([one.flatten(1) for one in gradients.values()], dim=1)
        rows = torch.nn.functional.pad(rows, (0, self._padding))[:, self._order] * self._signs
        return rows.unflatten(1, (self.dim, -1)).sum(dim=2)
