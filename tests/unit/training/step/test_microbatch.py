"""Keys of captured steps, and the inputs of a replay."""

from dataclasses import replace

import pytest
import torch

from lorasmith.loops.cuda_graphs import CudaGraphCache
from lorasmith.training.data.batch import Batch
from lorasmith.training.losses import Noise
from lorasmith.training.step.microbatch import Microbatch, graph_inputs, graph_key, replace_inputs


def part(seed: int = 0, size: int = 2, **more: object) -> Microbatch:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(size, *shape, generator=generator)

    batch = Batch(
        latents=drawn(4, 8, 8),
        loss_weights=drawn(),
        indices=torch.arange(size),
        context=drawn(77, 6),
        loss_mask=drawn(1, 8, 8),
        token_mask=drawn(1, 77) > 0,
        has_own_tag=[True] * size,
        has_other_tags=[[False] * size],
    )
    levels = torch.randint(1000, (size,), generator=generator)
    batch = replace(batch, **more)  # type: ignore[arg-type]
    return Microbatch(0, 0, size, batch, Noise(levels, drawn(4, 8, 8)))


def test_graph_key_does_not_depend_on_values_of_tensors() -> None:
    assert graph_key([part(0)]) == graph_key([part(1)])
    assert hash(graph_key([part(0), part(1)])) == hash(graph_key([part(2), part(3)]))


@pytest.mark.parametrize(
    "other",
    [
        part(size=3),
        part(task="preserve"),
        part(has_own_tag=[True, False]),
        part(has_other_tags=[[True, False]]),
        part(loss_mask=None),
        part(context=torch.zeros(2, 154, 6)),
        part(latents=torch.zeros(2, 4, 8, 8, dtype=torch.float64)),
        part()._replace(batch_size=4),
        part()._replace(lora_index=1),
        part()._replace(turn=1),
    ],
)
def test_graph_key_depends_on_shapes_dtypes_and_settings(other: Microbatch) -> None:
    assert graph_key([part()]) != graph_key([other])


def test_replay_exchanges_tensors_and_keeps_other_values() -> None:
    before, replacement = [part(0), part(1, size=3)], [part(5), part(6, size=3)]
    after = replace_inputs(before, graph_inputs(replacement))
    for actual, new, old in zip(after, replacement, before, strict=True):
        assert actual[:3] == old[:3]
        assert actual.batch.has_own_tag == old.batch.has_own_tag
        assert actual.batch.indices is old.batch.indices
        for name in ("latents", "loss_weights", "context", "loss_mask", "token_mask"):
            assert getattr(actual.batch, name) is getattr(new.batch, name)
        assert all(a is b for a, b in zip(actual.noise, new.noise, strict=True))
    assert all(tensor.device.type == "cpu" for tensor in graph_inputs(before))
    assert not any(tensor is before[0].batch.indices for tensor in graph_inputs(before))


def test_cpu_runs_the_work_at_every_call() -> None:
    recorder = CudaGraphCache(torch.device("cpu"))
    results = [
        float(recorder(0, [torch.tensor(float(k))], lambda inputs: inputs[0] * 2)) for k in range(6)
    ]
    assert results == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert len(recorder) == 0
