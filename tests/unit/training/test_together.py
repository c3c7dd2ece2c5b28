"""Several features in one pass: each gets the gradients that it would get by itself."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from step_helpers import take_step

from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.adapters.injection.trainable import TrainableLora, inject_trainable
from lorasmith.adapters.targeting.targets import resolve_targets
from lorasmith.config.train_config import LoraConfig, LossConfig, TrainerConfig
from lorasmith.core.device import make_generator
from lorasmith.models.load import Model, load_model
from lorasmith.models.text.encode import tokenize_texts
from lorasmith.training.data.batch import Batch
from lorasmith.training.gating import GateRouting, caption_gating, set_gates
from lorasmith.training.losses import Noise, build_noise_process
from lorasmith.training.train_step import (
    Denoiser,
    DiffusionLoss,
    LossInput,
    TrainStep,
    backward,
    compute_losses,
)

RATES = TrainerConfig(learning_rate=1e-3, text_encoder_lr=1e-3)
TARGETS = ("all-linear+conv+text-encoder", "cross-attention")


class Two:
    """Two features in one model, in float64, with adapters that do something."""

    def __init__(self, model: Model) -> None:
        self.model = model.to(torch.device("cpu"), torch.float64)
        settings = [LoraConfig(rank=2, targets=targets) for targets in TARGETS]
        targets = [resolve_targets(model, lora, RATES) for lora in settings]
        self.features = [
            inject_trainable(own, lora, seed)
            for seed, (own, lora) in enumerate(zip(targets, settings, strict=True))
        ]
        for number, feature in enumerate(self.features):
            for adapter in feature.adapters.values():
                adapter.double()
                draws = make_generator(4, number)
                adapter.up.data = 0.2 * torch.randn(
                    adapter.up.shape, generator=draws, dtype=torch.float64
                )
        gates = [one.attached.gate for one in self.features]
        self.lanes = [
            GateRouting(gates[0], others=gates[1:]),
            GateRouting(gates[1], others=gates[:1]),
        ]

    def share(
        self, number: int, size: int, seed: int = 0, lane: GateRouting | None = None
    ) -> LossInput:
        draws = make_generator(9, number, seed)
        process = build_noise_process(
            self.model.scheduler_config, LossConfig(), torch.device("cpu")
        )
        batch = Batch(
            latents=torch.randn(size, 4, 8, 8, generator=draws, dtype=torch.float64),
            loss_weights=torch.ones(size),
            indices=torch.arange(size),
            input_ids=tokenize_texts(
                self.model, [f"picture {seed + k} of {number}" for k in range(size)]
            ).ids,
        )
        noise = Noise(
            torch.randint(1000, (size,), generator=draws),
            torch.randn(size, 4, 8, 8, generator=draws, dtype=torch.float64),
        )
        used = lane or self.lanes[number]
        objective = DiffusionLoss(Denoiser(self.model), process, LossConfig(), used)
        return LossInput(objective, batch, noise)

    def gradients(self, *shares: LossInput) -> list[torch.Tensor]:
        """Of each feature, for the sum of the mean losses."""
        for feature in self.features:
            for parameter in feature.parameters():
                parameter.grad = None
        backward(torch.stack([losses.mean() for losses in compute_losses(shares)]).sum())
        return [flat(feature) for feature in self.features]


def flat(feature: TrainableLora) -> torch.Tensor:
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
            for p in feature.parameters()
        ]
    )


@pytest.fixture
def two(tiny_model: Path) -> Iterator[Two]:
    made = Two(load_model(tiny_model))
    yield made
    for feature in made.features:
        feature.attached.detach()


def test_gradients_of_one_feature_do_not_depend_on_rows_of_another(two: Two) -> None:
    """Bit for bit, whatever the other feature's pictures and captions are."""
    mine = two.share(0, 3)
    first, second = (two.gradients(mine, two.share(1, 2, seed)) for seed in (1, 2))
    assert torch.equal(first[0], second[0])
    assert float(first[0].norm()) > 1e-6
    assert not torch.allclose(first[1], second[1])


def test_a_shared_pass_gives_each_feature_its_own_gradients(two: Two) -> None:
    shares = two.share(0, 3), two.share(1, 2)
    together = two.gradients(*shares)
    for number, share in enumerate(shares):
        alone = two.gradients(share)[number]
        torch.testing.assert_close(together[number], alone, atol=1e-12, rtol=1e-9)
        assert float(two.gradients(share)[1 - number].norm()) == 0.0


def test_losses_come_back_to_whom_they_belong(two: Two) -> None:
    shares = two.share(0, 3), two.share(1, 2)
    with torch.no_grad():
        together = compute_losses(shares)
        for share, own in zip(shares, together, strict=True):
            torch.testing.assert_close(own, compute_losses([share])[0], atol=1e-6, rtol=1e-5)


def test_preservation_measures_what_the_adapters_change(two: Two) -> None:
    share = two.share(0, 2)
    kept = share._replace(batch=replace(share.batch, task="preserve"))
    with torch.no_grad():
        losses = compute_losses([kept])[0]
        noisy = share.loss.process.add_noise(
            share.batch.latents, share.noise.noise, share.noise.timesteps
        )
        denoise = share.loss.denoiser
        changed = denoise(noisy, share.noise.timesteps, share.batch)
        two.features[0].set_strength(0.0)
        base = denoise(noisy, share.noise.timesteps, share.batch)
        assert compute_losses([kept])[0].abs().max() == 0.0
    expected = (changed - base).float().square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, expected, atol=1e-7, rtol=1e-4)
    assert float(losses.min()) > 1e-6


def test_a_step_of_preservation_pulls_towards_the_base(two: Two) -> None:
    share = two.share(0, 4)
    kept = share._replace(batch=replace(share.batch, task="preserve"))
    before = float(compute_losses([kept])[0].mean())
    two.gradients(kept)
    with torch.no_grad():
        for parameter in two.features[0].parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad / flat(two.features[0]).norm()
    assert float(compute_losses([kept])[0].mean()) < before
    assert float(flat(two.features[1]).norm()) == 0.0


def test_an_earlier_feature_is_kept_with_itself_switched_on(two: Two) -> None:
    """eps_AB of A's caption against eps_A: nothing to keep where B does nothing, and A is on."""
    first, second = (one.attached.gate for one in two.features)
    lane = GateRouting(second, earlier=[(first, False)])
    share = two.share(1, 2, lane=lane)
    kept = share._replace(
        batch=replace(share.batch, task="preserve_frozen", has_other_tags=[[False, False]])
    )
    with torch.no_grad():
        changed = compute_losses([kept])[0]
        assert float(changed.min()) > 1e-8
        two.features[0].set_strength(0.0)
        without_first = compute_losses([kept])[0]
        assert not torch.allclose(changed, without_first, rtol=1e-3)
        two.features[1].set_strength(0.0)
        assert compute_losses([kept])[0].abs().max() == 0.0


def test_an_earlier_feature_is_at_work_for_captions_that_call_it(two: Two) -> None:
    first, second = (one.attached.gate for one in two.features)
    lane = GateRouting(second, earlier=[(first, False)])
    share = two.share(1, 2, lane=lane)

    def losses(*named: bool) -> torch.Tensor:
        batch = replace(share.batch, has_other_tags=[list(named)])
        with torch.no_grad():
            return compute_losses([share._replace(batch=batch)])[0]

    off, one = losses(False, False), losses(True, False)
    torch.testing.assert_close(off[1], one[1], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(off[0], one[0], rtol=1e-3)


# --- tokens -----------------------------------------------------------------------------------


TAGGED, UNTAGGED = "a curlyqx person, park", "a person, park"


@pytest.mark.parametrize("kind", ["token", "token+end"])
def test_a_token_gate_leaves_captions_without_the_tag_alone(two: Two, kind: Any) -> None:
    model, feature = two.model, two.features[1]
    facts = GateMetadata(kind, "curlyqx")
    lane = GateRouting(feature.attached.gate, by_token=True, others=[two.features[0].attached.gate])
    gating = caption_gating(model, facts, ())
    assert gating.marker is not None
    assert gating.own is not None

    def losses(caption: str) -> tuple[torch.Tensor, torch.Tensor]:
        share, ids = two.share(1, 1, lane=lane), tokenize_texts(model, [caption]).ids
        places, called = gating.marker(ids), [gating.own(caption)]
        batch = replace(share.batch, input_ids=ids, token_mask=places, has_own_tag=called)
        share = share._replace(batch=batch)
        gradient = two.gradients(share)[1]
        feature.set_strength(0.0)
        with torch.no_grad():
            base = compute_losses([share])[0]
        feature.set_strength(1.0)
        with torch.no_grad():
            return compute_losses([share])[0] - base, gradient

    change, gradient = losses(UNTAGGED)
    assert float(change.abs().max()) == 0.0
    assert float(gradient.norm()) == 0.0
    change, gradient = losses(TAGGED)
    assert float(change.abs().max()) > 1e-7
    # Queries and outputs of cross-attention read no text: they are at work for the whole picture.
    reading = [n for n, one in feature.adapters.items() if one.reads_text]
    assert reading
    assert float(gradient.norm()) > 1e-9


def test_a_batch_that_nothing_is_at_work_for_is_a_step_without_gradients(two: Two) -> None:
    """Such as one of class pictures under a token gate."""
    gate = two.features[1].attached.gate
    share = two.share(1, 2, lane=GateRouting(gate, by_token=True))
    batch = replace(
        share.batch, token_mask=torch.zeros(2, 1, 77, dtype=torch.bool), has_own_tag=[False] * 2
    )
    parameters = two.features[1].parameters()
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    step = TrainStep(share.loss, parameters, optimizer, max_grad_norm=1.0)
    figures = take_step(step, [(batch, share.noise)], 2)
    assert float(figures.grad_norm) == 0.0
    assert float(figures.loss) > 0.0
    assert step.failed_step() is None
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


def test_token_gates_of_a_shared_pass_keep_to_their_rows(two: Two) -> None:
    gates = [one.attached.gate for one in two.features]
    lanes = [
        GateRouting(gates[0], others=gates[1:]),
        GateRouting(gates[1], by_token=True, others=gates[:1]),
    ]
    places = torch.zeros(2, 1, 77, dtype=torch.bool)
    places[:, 0, 3] = True
    first, second = two.share(0, 1).batch, replace(two.share(1, 2).batch, token_mask=places)
    set_gates([(lanes[0], first), (lanes[1], second)])
    adapter = next(one for one in two.features[1].adapters.values() if one.reads_text)
    x = torch.randn(3, 77, 16, generator=make_generator(1), dtype=torch.float64)
    y = torch.zeros(3, 77, adapter.up.shape[0], dtype=torch.float64)
    added = gates[1].apply(adapter, x, y)
    touched = added.abs().sum(dim=-1) > 0
    assert touched.nonzero().tolist() == [[1, 3], [2, 3]]
