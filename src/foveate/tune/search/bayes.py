"""Bayesian optimisation by optuna's Gaussian process, with a seed, without its chatter."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence


def maximise(
    value: Callable[[dict[str, float]], float],
    ranges: Mapping[str, tuple[float, float]],
    trials: int,
    seed: int,
    begin: Sequence[Mapping[str, float]] = (),
    logarithmic: Sequence[str] = (),
) -> dict[str, float]:
    """The best of `trials` points: those of `begin` first, then what the process proposes (expected improvement).

    Args:
        value: of a point; deterministic.
        ranges: of every parameter.
        trials: how many points, `begin` included.
        seed: of the process.
        begin: points to try first.
        logarithmic: parameters searched by their logarithm.

    Raises:
        ValueError: optuna or scipy is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("optuna", "scipy")):
        raise ValueError(
            "Bayesian optimisation needs optuna and scipy; pip install 'foveate[search]'"
        )
    optuna = importlib.import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPSampler says on every run that it is experimental
        sampler = optuna.samplers.GPSampler(
            seed=seed, deterministic_objective=True, n_startup_trials=min(6, trials)
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for point in begin:
            study.enqueue_trial(dict(point))
        study.optimize(
            lambda trial: value(
                {
                    n: trial.suggest_float(n, low, high, log=n in logarithmic)
                    for n, (low, high) in ranges.items()
                }
            ),
            n_trials=trials,
        )
    best: dict[str, float] = study.best_params
    return best
