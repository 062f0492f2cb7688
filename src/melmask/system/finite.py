"""What leaves a command is finite: the one check of vectors, probabilities and scores."""

import numpy as np

from melmask.errors import NotFiniteError


def check_finite(values: np.ndarray | float, what: str) -> None:
    """Refuse numbers that must not leave a command.

    Args:
        values: Numbers of any shape.
        what: What they are, as in "the embedding".

    Raises:
        NotFiniteError: some of them are NaN or infinite.
    """
    finite = np.isfinite(values)
    if not finite.all():
        raise NotFiniteError(
            f"{what} is not finite ({finite.size - int(finite.sum())} of {finite.size} numbers are NaN or infinite); "
            "check the model's weights and its statistics, or compute in fp32"
        )
