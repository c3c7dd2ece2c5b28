"""What an image's metadata say about how it was made, in A1111's format."""

from hashlib import sha256
from pathlib import Path

from lorasmith.core.version import VERSION
from lorasmith.inference.options import SamplingOptions, Size
from lorasmith.inference.outputs.save import format_parameters
from lorasmith.inference.samplers import sampler_label

_CHUNK_BYTES = 1 << 20


def build_parameters_text(
    prompt: str,
    seed: int,
    options: SamplingOptions,
    size: Size,
    model: Path,
    model_hash: str,
    strength: float | None = None,
) -> str:
    """Return the ``parameters`` text of one image.

    Args:
        prompt: as written, LoRA mentions included.
        seed: of this image.
        options: of the call.
        size: width and height in pixels.
        model: the model's folder; only its name is written.
        model_hash: see `compute_model_hash`; left out where empty.
        strength: share of the steps that were taken on an init image; None without one.
    """
    settings: dict[str, object] = {
        "Steps": options.num_inference_steps,
        "Sampler": sampler_label(options.sampler),
        "CFG scale": float(options.guidance_scale),
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
    }
    if model_hash:
        settings["Model hash"] = model_hash
    settings["Model"] = model.resolve().name
    if strength is not None:
        settings["Denoising strength"] = float(strength)
    if options.clip_skip > 1:
        settings["Clip skip"] = options.clip_skip
    if options.guidance_rescale:
        settings["CFG rescale"] = float(options.guidance_rescale)
    if not options.gate:
        settings["LoRA gates"] = "off"
    settings |= {"RNG": "CPU", "Version": f"lorasmith {VERSION}"}
    return format_parameters(prompt, options.negative_prompt, settings)


def compute_model_hash(folder: Path) -> str:
    """Return the first 10 hex digits of the SHA-256 of the U-Net's weights, or ``""`` without any.

    For a model in a single file it is the file's hash, as in A1111. The files of a sharded U-Net
    are hashed one after the other in the order of their names.
    """
    files = sorted((folder / "unet").glob("*.safetensors"))
    # A second precision lies beside the first as NAME.fp16.safetensors; the plain one is loaded.
    files = [path for path in files if "." not in path.stem] or files
    if folder.is_file():
        files = [folder]
    digest = sha256()
    for path in files:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()[:10] if files else ""
