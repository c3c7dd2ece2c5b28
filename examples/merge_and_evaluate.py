"""Merge two LoRA files, and measure what is left of the first one's trigger word.

    python examples/merge_and_evaluate.py loras/inkmono loras/cook.safetensors --out merged

The first is a run's folder, so that the evaluation finds its images.
"""

import argparse
from pathlib import Path

import lorasmith
from lorasmith.inference.options import SamplingOptions


def percent(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.1%}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Merge two LoRA files and evaluate the result.")
    parser.add_argument("run", type=Path, help="Folder of a run; its LoRA file lies beside it.")
    parser.add_argument("other", type=Path, help="Another LoRA file.")
    parser.add_argument("--out", type=Path, default=Path("merged"))
    parser.add_argument("--seeds", type=int, default=4, help="Images of each kind of prompt.")
    parser.add_argument("--image-steps", type=int, default=20, help="Sampling steps of an image.")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)

    first = options.run.with_suffix(".safetensors")
    merged = options.out / "merged.safetensors"
    lorasmith.merge_loras(
        [lorasmith.WeightedLora(first, 1.0), lorasmith.WeightedLora(options.other, 0.5)], merged
    )
    total = lorasmith.lora_info(merged).total
    print(f"{merged}: {total.layers} layers, rank {total.ranks[-1]}, norm {total.norm:.3g}")

    result = lorasmith.evaluate(
        options.run,
        num_seeds=options.seeds,
        out=options.out / "evaluation",
        options=SamplingOptions(num_inference_steps=options.image_steps, batch_size=8),
    )
    for concept in result.results.features:
        gain, leak = concept.fidelity.gain, concept.plain.latent.ratio
        print(f"{concept.tag}: fidelity gain {percent(gain)}, leak without the tag {percent(leak)}")


if __name__ == "__main__":
    main()
