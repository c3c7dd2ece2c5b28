"""Learning rates that settings leave out."""

import pytest

from lorasmith.config.train_config import TrainerConfig
from lorasmith.training.setup.lr_defaults import fill_learning_rates


@pytest.mark.parametrize(
    ("settings", "size", "rates"),
    [
        ({}, 4_000_000, (6e-3, 3e-3)),
        ({}, 860_000_000, (1e-4, 5e-5)),
        ({"optimizer": "lion"}, 860_000_000, (2.5e-5, 1.25e-5)),
        ({"optimizer": "prodigy"}, 4_000_000, (1.0, 1.0)),
        ({"optimizer": "adafactor"}, 4_000_000, (6e-3, 3e-3)),
        ({"learning_rate": 0.5}, 4_000_000, (0.5, 0.25)),
        ({"learning_rate": 0.5, "text_encoder_lr": 0.1}, 4_000_000, (0.5, 0.1)),
        ({"optimizer": "prodigy", "learning_rate": 0.5}, 4_000_000, (0.5, 0.5)),
    ],
)
def test_missing_learning_rates_are_filled_in(settings: dict, size: int, rates: tuple) -> None:
    full = fill_learning_rates(TrainerConfig(**settings), size)
    assert (full.learning_rate, full.text_encoder_lr) == pytest.approx(rates)
    assert fill_learning_rates(full, 10**9) == full
