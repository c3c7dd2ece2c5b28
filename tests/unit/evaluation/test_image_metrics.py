import math

import pytest
import torch

from lorasmith.evaluation.metrics.image import pooled_psnr, psnr, retrieval_ranks, top_k_accuracy


@pytest.fixture
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    shown = torch.rand(4, 3, 5, 6) * 2 - 1
    return shown, (shown + 0.3 * torch.randn_like(shown) * torch.arange(1, 5).view(-1, 1, 1, 1))


def plain_error(first: torch.Tensor, second: torch.Tensor) -> float:
    pairs = list(zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))
    return sum((a - b) ** 2 for a, b in pairs) / len(pairs)


def test_psnr_equals_its_formula(pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = pictures
    errors = [plain_error(a, b) for a, b in zip(first, second, strict=True)]
    expected = [10 * math.log10(4 / error) for error in errors]
    assert psnr(first, second).tolist() == pytest.approx(expected, rel=1e-4)
    assert pooled_psnr(first, second) == pytest.approx(
        10 * math.log10(4 / (sum(errors) / 4)), rel=1e-4
    )
    assert pooled_psnr(first, second) < sum(expected) / 4
    assert float(psnr(first, first).min()) > 100  # equal images are finite


@pytest.mark.parametrize("extra", [0, 3])
def test_ranks_and_top_k_are_counted(extra: int) -> None:
    torch.manual_seed(1)
    queries = torch.nn.functional.normalize(torch.randn(20, 4), dim=1)
    candidates = torch.nn.functional.normalize(torch.randn(20 + extra, 4), dim=1)
    candidates[:20] = torch.nn.functional.normalize(candidates[:20] + queries, dim=1)
    expected = []
    for i, query in enumerate(queries):
        own_similarity = float(query @ candidates[i])
        nearer = [
            j
            for j, c in enumerate(candidates)
            if j != i and float(query @ c) > own_similarity + 1e-7
        ]
        expected.append(len(nearer))
    rank = retrieval_ranks(queries, candidates)
    assert rank.tolist() == expected
    assert len(set(expected)) > 3
    for k in (1, 5):
        assert top_k_accuracy(rank, k) == pytest.approx(sum(r < k for r in expected) / 20)


def test_equal_candidate_is_not_nearer() -> None:
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    true_pairs = torch.tensor([[0.8, 0.6], [0.8, 0.6], [1.0, 0.0]])
    assert retrieval_ranks(query, true_pairs).tolist() == [
        1,
        0,
        2,
    ]  # for the last both equal ones are nearer
