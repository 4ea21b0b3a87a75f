"""How far the outputs of an exported artefact may be from those of the trained model.

    Lite(signature, format="int8", bound=Bounds(max_error=0.2, p99_error=0.02, agreement=0.99, metric=0.005))

A format that computes as the model does has a number as its bound, which allows for rounding alone. A format that
approximates the model, such as int8, has `Bounds`.
"""

import dataclasses

from framework.errors import UserError


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Bounds of a format that approximates the trained model; errors are parts of the range of an output.

    The range is the largest minus the smallest value of the trained model's output over all held-out examples.

    Attributes:
      max_error: largest allowed error of a value. An activation outside of the range that int8 was calibrated for is
        clipped, so a few values may be far off in a model that is good as a whole.
      p99_error: largest allowed 99th percentile of the errors.
      agreement: least part of the rows in which the largest value is at the place at which the trained model has it;
        of an output of whole numbers or texts, least part of equal values. Below 1, one may always differ.
      metric: largest allowed change of a metric, as a part of max(1, |metric of the trained model|).

    Raises:
      UserError: a bound is negative or NaN, or the agreement is above 1.
    """

    max_error: float
    p99_error: float
    agreement: float
    metric: float

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value >= 0 or (name == "agreement" and value > 1):
                raise UserError(
                    f"Bounds({name}={value}) is out of range."
                    f" Use {'a part of the rows, 0 to 1' if name == 'agreement' else '0 or more'}."
                )
