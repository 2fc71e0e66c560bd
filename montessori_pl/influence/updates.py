"""One optimizer step as a pure function: parameters and gradients in, moved parameters out.

Knows nothing about models or losses. Each rule repeats the arithmetic of its `torch.optim` namesake in the same order,
so that a probe moves the student exactly as one more step of that optimizer on the example alone would. What a trainer
does to a gradient before the step is not part of it; `ClippedGradient` adds the clipping by norm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

Params = dict[str, Tensor]
"""Parameters, or anything of their shapes (gradients, moments), by name."""


class UpdateRule(Protocol):
    """What moves parameters along gradients."""

    def __call__(self, params: Params, grads: Params) -> Params:
        """Return the moved parameters as new tensors; neither argument is changed."""
        ...


@dataclass(frozen=True)
class SGD:
    """One step of `torch.optim.SGD` without momentum."""

    lr: float
    """Learning rate."""
    weight_decay: float = 0.0
    """Added to the gradient, times the parameter."""

    def __call__(self, params: Params, grads: Params) -> Params:
        """Return the moved parameters as new tensors; neither argument is changed."""
        return {name: self._step(param, grads[name]) for name, param in params.items()}

    def _step(self, param: Tensor, grad: Tensor) -> Tensor:
        if self.weight_decay != 0:
            grad = grad.add(param, alpha=self.weight_decay)
        return param.add(grad, alpha=-self.lr)


@dataclass(frozen=True)
class AdamMoments:
    """What AdamW remembers of the steps it has taken."""

    step: int
    """Number of steps taken."""
    exp_avg: Params
    """Running mean of the gradients."""
    exp_avg_sq: Params
    """Running mean of the squared gradients."""


@dataclass(frozen=True)
class AdamW:
    """One step of `torch.optim.AdamW`, from remembered moments or from a fresh start."""

    lr: float
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two running means."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """The parameters shrink by lr * weight_decay before the step."""
    moments: AdamMoments | None = None
    """The optimizer's memory; None starts fresh, at step 0."""

    @classmethod
    def from_optimizer_state(
        cls,
        state_dict: Mapping[str, Any],
        names: Sequence[str],
        lr: float | None = None,
        device: torch.device | None = None,
    ) -> Self:
        """Build the rule for the next step of a `torch.optim.AdamW`; moments that stay where they are share its memory.

        Args:
            state_dict: what the optimizer's `state_dict()` returned; its parameters may be spread over several groups.
            names: the parameters' names, in the order in which the optimizer numbers them.
            lr: learning rate of the step; None takes the one in the state.
            device: where the parameters are, and the moments are put; None leaves them. A checkpoint that a trainer has
                loaded to predict keeps them on the CPU.

        Raises:
            ValueError: the names do not match the parameters, the state of a parameter is missing, or the state needs
                more than this rule can do (groups or parameters that differ, AMSGrad, maximization).
        """
        groups = [group for group in state_dict["param_groups"] if group["params"]]
        indices = sorted(index for group in groups for index in group["params"])
        if indices != list(range(len(names))):
            raise ValueError(f"the optimizer state has {len(indices)} parameters, but {len(names)} names were given")
        states = state_dict["state"]
        if missing := [names[index] for index in indices if index not in states]:
            raise ValueError(
                f"the optimizer state has no moments for {len(missing)} of {len(names)} parameters "
                f"(first: {missing[0]}); train for at least one step in which each of them gets a gradient"
            )
        if any(group["amsgrad"] or group["maximize"] for group in groups):
            raise ValueError("the optimizer uses amsgrad or maximize, which the AdamW update of a probe does not have")
        return cls(
            lr=float(_common("lr", [group["lr"] for group in groups])) if lr is None else lr,
            betas=_common("betas", [tuple(group["betas"]) for group in groups]),
            eps=_common("eps", [group["eps"] for group in groups]),
            weight_decay=_common("weight_decay", [group["weight_decay"] for group in groups]),
            moments=AdamMoments(
                step=int(_common("step", [float(states[index]["step"]) for index in indices])),
                exp_avg={names[index]: states[index]["exp_avg"].to(device=device) for index in indices},
                exp_avg_sq={names[index]: states[index]["exp_avg_sq"].to(device=device) for index in indices},
            ),
        )

    def __call__(self, params: Params, grads: Params) -> Params:
        """Return the moved parameters as new tensors; neither argument is changed."""
        return {name: self._step(name, param, grads[name]) for name, param in params.items()}

    def _step(self, name: str, param: Tensor, grad: Tensor) -> Tensor:
        if self.moments is None:
            step, exp_avg, exp_avg_sq = 1, torch.zeros_like(param), torch.zeros_like(param)
        else:
            step = self.moments.step + 1
            exp_avg, exp_avg_sq = self.moments.exp_avg[name], self.moments.exp_avg_sq[name]
        beta1, beta2 = self.betas
        exp_avg = exp_avg.lerp(grad, 1 - beta1)
        exp_avg_sq = exp_avg_sq.mul(beta2).addcmul(grad, grad, value=1 - beta2)
        denominator = (exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5).add(self.eps)
        decayed = param.mul(1 - self.lr * self.weight_decay)
        return decayed.addcdiv(exp_avg, denominator, value=-self.lr / (1 - beta1**step))


@dataclass(frozen=True)
class ClippedGradient:
    """A rule whose gradients are first clipped by their norm, as `torch.nn.utils.clip_grad_norm_` does."""

    update: UpdateRule
    """The rule."""
    max_norm: float
    """Largest norm over all parameters; of longer gradients the direction remains."""

    def __call__(self, params: Params, grads: Params) -> Params:
        """Return the moved parameters; where gradients have a leading dimension for examples, each is clipped alone."""
        norms = torch.stack([_norms(grads[name], param) for name, param in params.items()])
        scale = (self.max_norm / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
        clipped = {
            name: grads[name] * scale.reshape((*scale.shape, *[1] * param.dim())) for name, param in params.items()
        }
        return self.update(params, clipped)


def _norms(grad: Tensor, param: Tensor) -> Tensor:
    """The norm of a gradient, or of each along a leading dimension."""
    return torch.linalg.vector_norm(grad.reshape(*grad.shape[: grad.dim() - param.dim()], -1), dim=-1)


def _common(key: str, values: Sequence[Any]) -> Any:
    """The one value that all parameters share."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) != 1:
        raise ValueError(f"a probe needs one {key} for all parameters, but the optimizer state has {distinct}")
    return distinct[0]
