import math

import pytest
import torch

from lorasmith.core.errors import TrainingError
from lorasmith.pretraining.clip import check_not_collapsed, contrastive_loss


def test_loss_is_that_of_plain_loops() -> None:
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(7, 5), dim=1) for _ in range(2))
    scale = 9.0
    logits = [[scale * sum(a * b for a, b in zip(i, t, strict=True)) for t in text.tolist()]
              for i in image.tolist()]  # fmt: skip
    rows = [math.log(sum(math.exp(x) for x in row)) - row[i] for i, row in enumerate(logits)]
    transposed = [list(column) for column in zip(*logits, strict=True)]
    columns = [math.log(sum(math.exp(x) for x in row)) - row[i] for i, row in enumerate(transposed)]
    expected = (sum(rows) / 7 + sum(columns) / 7) / 2
    right = sum(max(range(7), key=row.__getitem__) == i for i, row in enumerate(logits)) / 7
    loss, accuracy = contrastive_loss(image, text, torch.tensor(scale))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(accuracy) == pytest.approx(right)


def test_perfect_and_collapsed_encoders_have_known_losses() -> None:
    loss, accuracy = contrastive_loss(torch.eye(8), torch.eye(8), torch.tensor(100.0))
    assert float(loss) < 1e-6
    assert float(accuracy) == 1.0
    collapsed = torch.ones(8, 4) / 2
    assert float(contrastive_loss(collapsed, collapsed, torch.tensor(50.0))[0]) == pytest.approx(
        math.log(8)
    )


@pytest.mark.parametrize("loss", [math.log(64), math.log(64) * 1.009, math.log(64) * 0.991])
def test_loss_at_chance_level_is_a_collapse(loss: float) -> None:
    with pytest.raises(TrainingError, match=r"collapsed: after 300 steps .* chance is 4\.159"):
        check_not_collapsed(loss, 64, 300)


@pytest.mark.parametrize("loss", [math.log(64) * 1.011, math.log(64) * 0.989, 0.1])
def test_loss_away_from_chance_level_is_no_collapse(loss: float) -> None:
    check_not_collapsed(loss, 64, 300)
