"""What repetitions of a ratio say.

low, high = interval(ours / theirs)
"""

import numpy as np


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """Bootstrap interval of 95 % of the median of [repetitions] ratios."""
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)
