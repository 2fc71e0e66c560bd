"""What is known about the influence of one example."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Influence:
    """How much one step on an example lowers the reference loss, in nats per token; positive helps."""

    plain: float
    """Reference loss before the step minus the one after it."""
    centred: float
    """Reference loss after a step with zero gradient minus the one after the step on the example."""
    plain_standard_error: float
    """Of `plain`, over reference examples; nan where it is not known."""
    centred_standard_error: float
    """Of `centred`, over reference examples; nan for a single one."""
    method: str
    """How it was computed."""
    differences: Tensor | None = None
    """Loss of each reference example after a step with zero gradient minus after the step on the example, shape (R,);
    none for methods that do not look at each."""
