"""VTW's search: the first layer before which all visual tokens may leave."""

from __future__ import annotations

from collections.abc import Sequence

from ..problem import Problem


def vtw(problem: Problem, tolerance: float = 0.003) -> Sequence[float]:
    """All tokens up to a layer and none from it on, the layer as shallow as `tolerance` allows.

    Paper: arXiv 2405.05803; its criterion is ``--objective first-kl`` with its eta as tolerance, on
    about 20 samples.

    Deviations: layers are tried from the shallowest on, and the first that passes is taken, as in
    `foveate.tune.find_vtw_layer`; the paper's code runs them all. Where none passes, all is kept.

    Args:
        problem: what is searched.
        tolerance: quality given up against the unpruned model; the paper's eta, in nats, where
            quality is minus KL.

    Raises:
        ValueError: a negative tolerance.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance}; expected 0 or more")
    problem.hold(problem.unpruned[: problem.first])
    floor = problem.full - tolerance
    for layer in range(problem.first, problem.layers):
        problem.hold(problem.unpruned[:layer])
        keep = [1.0] * layer + [0.0] * (problem.layers - layer)
        if problem.passes(keep, floor):
            return keep
    return problem.unpruned
