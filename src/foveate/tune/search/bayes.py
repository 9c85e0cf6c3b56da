"""Bayesian optimisation by optuna's Gaussian process, with a seed, without its chatter."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def maximise(
    value: Callable[[dict[str, float]], float],
    ranges: Mapping[str, tuple[float, float]],
    trials: int,
    seed: int,
    begin: Sequence[Mapping[str, float]] = (),
    logarithmic: Sequence[str] = (),
) -> dict[str, float]:
    """The best of `trials` points: those of `begin` first, then what the process proposes.

    It proposes the point of the largest expected improvement.

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

        def value_of(trial: Any) -> float:
            point = {}
            for name, (low, high) in ranges.items():
                point[name] = trial.suggest_float(name, low, high, log=name in logarithmic)
            return value(point)

        study.optimize(value_of, n_trials=trials)
    best: dict[str, float] = study.best_params
    return best
