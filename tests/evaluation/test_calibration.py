import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from finlora.evaluation.calibration import HIGHEST, LOWEST, MIN_ROWS, calibrate


def draw(num_rows: int, *, sharpness: float, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Probabilities raised to a power, and labels drawn from what they were before."""
    generator = np.random.default_rng(seed)
    true = generator.dirichlet((1.0, 1.0, 1.0), num_rows)
    labels = [int(generator.choice(3, p=row)) for row in true]
    return sharpened(true, sharpness), labels


def sharpened(chances: np.ndarray, power: float) -> np.ndarray:
    raised: np.ndarray = chances**power
    raised /= raised.sum(1, keepdims=True)
    return raised


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_it_finds_how_much_too_sure_probabilities_are(sharpness: float) -> None:
    chances, labels = draw(4000, sharpness=sharpness)
    found = calibrate(chances.tolist(), labels)
    assert found is not None
    assert found.temperature == pytest.approx(sharpness, rel=0.1)


def test_no_other_temperature_has_a_lower_log_loss() -> None:
    chances, labels = draw(400, sharpness=2.0, seed=1)
    found = calibrate(chances.tolist(), labels)
    assert found is not None

    def loss(temperature: float) -> float:
        return float(log_loss(labels, sharpened(chances, 1 / temperature), labels=[0, 1, 2]))

    best = minimize_scalar(loss, bounds=(LOWEST, HIGHEST), method="bounded")
    assert found.temperature == pytest.approx(best.x, rel=1e-2)
    assert found.log_loss == pytest.approx(loss(1.0))
    assert found.calibrated_log_loss == pytest.approx(best.fun, rel=1e-6)


def test_extremes_stay_finite() -> None:
    certain = [[1.0, 0.0]] * MIN_ROWS
    right, wrong = calibrate(certain, [0] * MIN_ROWS), calibrate(certain, [1] * MIN_ROWS)
    assert right is not None
    assert wrong is not None
    assert right.temperature == pytest.approx(LOWEST)
    assert wrong.temperature == pytest.approx(HIGHEST)


def test_few_rows_are_not_enough() -> None:
    chances, labels = draw(MIN_ROWS - 1, sharpness=2.0)
    assert calibrate(chances.tolist(), labels) is None
