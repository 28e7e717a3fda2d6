"""Ranges, declared once: plan checks, CLI help, error texts, docs and test generators read these annotations."""

from typing import Annotated

from annotated_types import Ge, Gt, Interval

Share = Annotated[float, Interval(gt=0, le=1)]  # a share in (0, 1]
Fraction = Annotated[float, Interval(ge=0, lt=1)]  # a fraction in [0, 1): may be nothing, may not be all
Count = Annotated[int, Ge(1)]  # a whole number, at least 1
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
