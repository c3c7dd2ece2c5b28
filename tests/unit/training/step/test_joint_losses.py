"""Losses of several LoRAs in one pass: each gets the gradients of a pass of its own."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.training.joint_loras import JointLoras, flat_gradient
from helpers.training.training_steps import take_step
from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.core.device import make_generator
from lorasmith.models.text.encode import tokenize_texts
from lorasmith.training.data.captions.gating import caption_gating
from lorasmith.training.step.gating import GateRouting, set_gates
from lorasmith.training.step.train_step import TrainStep, compute_losses


def test_gradients_of_one_lora_do_not_depend_on_images_of_another(joint_loras: JointLoras) -> None:
    """Bit for bit, whatever the images and captions of the other feature."""
    loss_input = joint_loras.loss_input(0, 3)
    first, second = (
        joint_loras.gradients(loss_input, joint_loras.loss_input(1, 2, seed)) for seed in (1, 2)
    )
    assert torch.equal(first[0], second[0])
    assert float(first[0].norm()) > 1e-6
    assert not torch.allclose(first[1], second[1])


def test_shared_pass_equals_separate_gradients_of_each_lora(joint_loras: JointLoras) -> None:
    inputs = joint_loras.loss_input(0, 3), joint_loras.loss_input(1, 2)
    jointly = joint_loras.gradients(*inputs)
    for number, item in enumerate(inputs):
        expected = joint_loras.gradients(item)[number]
        torch.testing.assert_close(jointly[number], expected, atol=1e-12, rtol=1e-9)
        assert float(joint_loras.gradients(item)[1 - number].norm()) == 0.0


def test_losses_are_returned_in_the_order_of_the_inputs(joint_loras: JointLoras) -> None:
    inputs = joint_loras.loss_input(0, 3), joint_loras.loss_input(1, 2)
    with torch.no_grad():
        jointly = compute_losses(inputs)
        for item, item_losses in zip(inputs, jointly, strict=True):
            torch.testing.assert_close(item_losses, compute_losses([item])[0], atol=1e-6, rtol=1e-5)


def test_preservation_loss_is_the_change_of_the_prediction(joint_loras: JointLoras) -> None:
    item = joint_loras.loss_input(0, 2)
    preserved = item._replace(batch=replace(item.batch, task="preserve"))
    with torch.no_grad():
        losses = compute_losses([preserved])[0]
        noisy = item.loss.process.add_noise(
            item.batch.latents, item.noise.noise, item.noise.timesteps
        )
        denoise = item.loss.denoiser
        changed = denoise(noisy, item.noise.timesteps, item.batch)
        joint_loras.loras[0].set_strength(0.0)
        base = denoise(noisy, item.noise.timesteps, item.batch)
        assert compute_losses([preserved])[0].abs().max() == 0.0
    expected = (changed - base).float().square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, expected, atol=1e-7, rtol=1e-4)
    assert float(losses.min()) > 1e-6


def test_preservation_step_pulls_towards_the_base_model(joint_loras: JointLoras) -> None:
    item = joint_loras.loss_input(0, 4)
    preserved = item._replace(batch=replace(item.batch, task="preserve"))
    before = float(compute_losses([preserved])[0].mean())
    joint_loras.gradients(preserved)
    with torch.no_grad():
        for parameter in joint_loras.loras[0].parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad / flat_gradient(joint_loras.loras[0]).norm()
    assert float(compute_losses([preserved])[0].mean()) < before
    assert float(flat_gradient(joint_loras.loras[1]).norm()) == 0.0


def test_frozen_feature_is_active_while_its_prediction_is_preserved(
    joint_loras: JointLoras,
) -> None:
    """eps_AB of A's caption against eps_A: zero while B has no effect, with A active."""
    first, second = (lora.attached.gate for lora in joint_loras.loras)
    routing = GateRouting(second, frozen=[(first, False)])
    item = joint_loras.loss_input(1, 2, routing=routing)
    preserved = item._replace(
        batch=replace(item.batch, task="preserve_frozen", has_other_tags=[[False, False]])
    )
    with torch.no_grad():
        changed = compute_losses([preserved])[0]
        assert float(changed.min()) > 1e-8
        joint_loras.loras[0].set_strength(0.0)
        without_first = compute_losses([preserved])[0]
        assert not torch.allclose(changed, without_first, rtol=1e-3)
        joint_loras.loras[1].set_strength(0.0)
        assert compute_losses([preserved])[0].abs().max() == 0.0


def test_frozen_feature_is_active_for_captions_with_its_tag(joint_loras: JointLoras) -> None:
    first, second = (lora.attached.gate for lora in joint_loras.loras)
    routing = GateRouting(second, frozen=[(first, False)])
    item = joint_loras.loss_input(1, 2, routing=routing)

    def losses(*named: bool) -> torch.Tensor:
        batch = replace(item.batch, has_other_tags=[list(named)])
        with torch.no_grad():
            return compute_losses([item._replace(batch=batch)])[0]

    off, active = losses(False, False), losses(True, False)
    torch.testing.assert_close(off[1], active[1], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(off[0], active[0], rtol=1e-3)


# --- tokens -----------------------------------------------------------------------------------


TAGGED, UNTAGGED = "a curlyqx person, park", "a person, park"


@pytest.mark.parametrize("kind", ["token", "token+end"])
def test_token_gate_is_closed_without_the_tag(joint_loras: JointLoras, kind: Any) -> None:
    model, feature = joint_loras.model, joint_loras.loras[1]
    facts = GateMetadata(kind, "curlyqx")
    routing = GateRouting(
        feature.attached.gate, selects_tokens=True, joint=[joint_loras.loras[0].attached.gate]
    )
    gating = caption_gating(model, facts, ())
    assert gating.token_mask_fn is not None
    assert gating.has_own_tag is not None

    def losses(caption: str) -> tuple[torch.Tensor, torch.Tensor]:
        item, ids = (
            joint_loras.loss_input(1, 1, routing=routing),
            tokenize_texts(model, [caption]).ids,
        )
        places, called = gating.token_mask_fn([caption], ids), [gating.has_own_tag(caption)]
        batch = replace(item.batch, input_ids=ids, token_mask=places, has_own_tag=called)
        item = item._replace(batch=batch)
        gradient = joint_loras.gradients(item)[1]
        feature.set_strength(0.0)
        with torch.no_grad():
            base = compute_losses([item])[0]
        feature.set_strength(1.0)
        with torch.no_grad():
            return compute_losses([item])[0] - base, gradient

    change, gradient = losses(UNTAGGED)
    assert float(change.abs().max()) == 0.0
    assert float(gradient.norm()) == 0.0
    change, gradient = losses(TAGGED)
    assert float(change.abs().max()) > 1e-7
    # Queries and outputs of cross-attention read no text: they are active for the full image.
    reading = [n for n, adapter in feature.adapters.items() if adapter.reads_text]
    assert reading
    assert float(gradient.norm()) > 1e-9


def test_batch_without_active_adapters_is_a_step_without_gradients(joint_loras: JointLoras) -> None:
    """For example a batch of class images under a token gate."""
    gate = joint_loras.loras[1].attached.gate
    item = joint_loras.loss_input(1, 2, routing=GateRouting(gate, selects_tokens=True))
    batch = replace(
        item.batch, token_mask=torch.zeros(2, 1, 77, dtype=torch.bool), has_own_tag=[False] * 2
    )
    parameters = joint_loras.loras[1].parameters()
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    step = TrainStep(item.loss, parameters, optimizer, max_grad_norm=1.0)
    figures = take_step(step, [(batch, item.noise)], 2)
    assert float(figures.grad_norm) == 0.0
    assert float(figures.loss) > 0.0
    assert step.failed_step() is None
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


def test_token_gates_of_a_shared_pass_change_only_rows_of_their_lora(
    joint_loras: JointLoras,
) -> None:
    gates = [lora.attached.gate for lora in joint_loras.loras]
    routings = [
        GateRouting(gates[0], joint=gates[1:]),
        GateRouting(gates[1], selects_tokens=True, joint=gates[:1]),
    ]
    places = torch.zeros(2, 1, 77, dtype=torch.bool)
    places[:, 0, 3] = True
    first, second = (
        joint_loras.loss_input(0, 1).batch,
        replace(joint_loras.loss_input(1, 2).batch, token_mask=places),
    )
    set_gates([(routings[0], first), (routings[1], second)])
    adapter = next(
        adapter for adapter in joint_loras.loras[1].adapters.values() if adapter.reads_text
    )
    x = torch.randn(3, 77, 16, generator=make_generator(1), dtype=torch.float64)
    y = torch.zeros(3, 77, adapter.up.shape[0], dtype=torch.float64)
    added = gates[1].apply(adapter, x, y)
    touched = added.abs().sum(dim=-1) > 0
    assert touched.nonzero().tolist() == [[1, 3], [2, 3]]
