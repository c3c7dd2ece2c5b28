"""Pure tensor code without project types: fused LoRA layers, norms, activations, FP8, streams."""
