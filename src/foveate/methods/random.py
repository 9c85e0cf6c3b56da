"""Random: a random subset, which all must beat."""

from __future__ import annotations

from ..core.knobs import checked
from ..core.method import Method
from ..core.schedules import Cut, spelled
from ..core.scores import Random


@checked
def random(layer: int = 0, keep: float | int = 0.5, seed: int = 0) -> Method:
    """Before layer `layer`, keep a pseudo-random subset of the visual tokens.

    Paper: none; a mandatory control, since it beats several published rankings (see DART, arXiv
    2502.11494).

    Where: before the language model; layer 0.

    Deviations: the subset depends on the seed and on a token's number alone, so that a sample is
    treated alike alone and in a batch; vary the seed from sample to sample, or average over seeds.

    Args:
        layer: the first layer that runs with fewer tokens.
        keep: visual tokens kept, a fraction (float) or a number (int).
        seed: of the order.

    Raises:
        ValueError: a negative layer, `keep` out of range, or a seed that is not in 0 to 2**31 - 1.
    """
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed={seed}; expected 0 to {2**31 - 1}")
    return Method(
        Random(seed),
        Cut(layer, keep),
        name=f"random:layer={layer},keep={spelled(keep)},seed={seed}",
    )
