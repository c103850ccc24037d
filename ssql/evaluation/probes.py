"""Probes of frozen features: linear heads and nearest neighbours, their scores and how sure those are.

| task | head | metric | interval of 95 % |
| --- | --- | --- | --- |
| classes | logistic regression | `linear`: accuracy, % | Wilson |
| classes | 10 nearest neighbours by cosine, weighted by distance | `knn`: accuracy, % | Wilson |
| numbers | ridge regression, its penalty by leave-one-out | `r2`: 1 - squared error / variance | bootstrap over clips |
| numbers | the same | `mae`: mean absolute error, in the target's unit | bootstrap over clips |

`retained` is what is left of the full-precision head's skill on the same clips: accuracy above that of the most
frequent class, or R2, divided by the same at full precision. Its interval is a paired bootstrap over clips.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.base import is_classifier
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

RESAMPLES = 1000
PENALTIES = np.logspace(-1, 5, 13)

# Metric to fitted scikit-learn estimator.
Heads = dict[str, Any]


def fit_heads(features: np.ndarray, answers: np.ndarray) -> Heads:
    """The heads of a task by metric.

    Args:
        features: shape (clips, feature_dim).
        answers: shape (clips,); integers are classes, floats are numbers to predict.
    """
    if np.issubdtype(answers.dtype, np.floating):
        return {"r2": make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(features, answers)}
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=1.0, tol=1e-3))
    neighbours = min(10, len(features))
    knn = KNeighborsClassifier(neighbours, metric="cosine", weights="distance", algorithm="brute")
    return {"linear": linear.fit(features, answers), "knn": knn.fit(features, answers)}


@dataclass(frozen=True)
class Outcome:
    """What a head did on each test clip.

    Attributes:
        loss: shape (clips,); 1 where a class is wrong, or the squared error.
        baseline: shape (clips,), the same of a constant answer: the class most frequent in training, or the mean.
        is_class: whether classes were told apart.
    """

    loss: np.ndarray
    baseline: np.ndarray
    is_class: bool

    def skill(self, weights: np.ndarray) -> np.ndarray:
        """1 - loss / baseline: 1 is perfect, 0 no better than a constant; R2 for numbers.

        NaN where the constant answer makes no error: few clips have resamples of one class, or of one number.

        Args:
            weights: of the clips, shape (..., clips).
        """
        baseline = weights @ self.baseline
        skill: np.ndarray = 1 - (weights @ self.loss) / np.where(baseline > 0, baseline, np.nan)
        return skill


def outcome_of(head: Any, features: np.ndarray, answers: np.ndarray, constant: int | None) -> Outcome:
    """A head's outcome on test features (clips, feature_dim); `constant` is the most frequent class in training."""
    said = head.predict(features)
    if is_classifier(head):
        return Outcome((said != answers).astype(float), (answers != constant).astype(float), True)
    return Outcome((said - answers) ** 2, (answers - answers.mean()) ** 2, False)


def scores(metric: str, outcome: Outcome, full: Outcome, unit: str = "%") -> list[dict[str, Any]]:
    """Scores of an outcome: metric, value, its interval (low, high), unit, and what is retained of full precision.

    Args:
        metric: the head's: `linear`, `linear_fp_head`, `knn`, `r2` or `r2_fp_head`.
        outcome: at some bit-width.
        full: of the same metric on the same clips at full precision.
        unit: of the target.

    Returns:
        one score, or two for numbers: R2 and the mean absolute error. `chance` is the accuracy of the constant answer.
    """
    kept = retained(outcome, full)
    clips = len(outcome.loss)
    if outcome.is_class:
        hits = clips - int(outcome.loss.sum())
        interval = binomtest(hits, clips).proportion_ci(method="wilson")
        ends = {"low": 100 * float(interval.low), "high": 100 * float(interval.high)}
        chance = 100 * float(1 - outcome.baseline.mean())
        return [{"metric": metric, "value": 100 * hits / clips, **ends, "unit": "%", "chance": chance, **kept}]
    error, weights = np.sqrt(outcome.loss), resamples(clips)
    r2 = {"metric": metric, "value": float(outcome.skill(np.full(clips, 1 / clips)))}
    mae = {"metric": metric.replace("r2", "mae"), "value": float(error.mean())}
    return [
        {**r2, **_ends(outcome.skill(weights)), "unit": "", **kept},
        {**mae, **_ends(weights @ error), "unit": unit},
    ]


def retained(outcome: Outcome, full: Outcome) -> dict[str, float | None]:
    """Share of the full-precision skill that is left, with its interval; None where there was no skill to lose."""
    clips = len(outcome.loss)
    weights, even = resamples(clips), np.full(clips, 1 / clips)
    before = full.skill(weights)
    if np.isnan(before).all() or np.nanpercentile(before, 2.5) <= 0:
        return {"retained": None, "retained_low": None, "retained_high": None}
    some = before > 0  # at least 97.5 % of the resamples
    ends = _ends(outcome.skill(weights[some]) / before[some])
    share = float(outcome.skill(even) / full.skill(even))
    return {"retained": share, "retained_low": ends["low"], "retained_high": ends["high"]}


@lru_cache(maxsize=4)
def resamples(clips: int) -> np.ndarray:
    """Weights of the clips in bootstrap resamples, shape (1000, clips), each row's sum 1; always the same ones."""
    draws = np.random.default_rng(0).multinomial(clips, np.full(clips, 1 / clips), RESAMPLES)
    return draws / clips


def most_frequent(answers: np.ndarray) -> int | None:
    """The class most frequent in training; None for numbers."""
    return None if np.issubdtype(answers.dtype, np.floating) else int(np.bincount(answers).argmax())


def with_full_precision_heads(heads: Heads, full: Mapping[str, Any]) -> Heads:
    """The heads, and after each linear one that of full precision, to be tried on these features."""
    tried: Heads = {}
    for metric, head in heads.items():
        tried[metric] = head
        if metric in ("linear", "r2"):
            tried[f"{metric}_fp_head"] = full[metric]
    return tried


def _ends(values: np.ndarray) -> dict[str, float]:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return {"low": float(low), "high": float(high)}
