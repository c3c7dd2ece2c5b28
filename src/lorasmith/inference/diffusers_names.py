"""What a `Pipeline` has in place of the methods and attributes of a diffusers pipeline."""

from collections.abc import Mapping

_LOADING = "use lorasmith.load_pipeline(path, device=..., dtype=...)"
_UNLOAD = "use pipe.unload_lora(), which detaches all LoRAs"
_WEIGHTS = (
    'each LoRA has its weight when it is loaded, pipe.load_lora("inkmono", weight=0.8), or in a '
    "prompt, <lora:inkmono:0.8>; pipe.unload_lora() detaches all"
)
_FUSING = "use lorasmith.fuse_loras(...), which writes a model with the LoRAs in it"
_MEMORY = "leave it out: attention is memory-efficient, and batch_size=1 takes the least memory"
_NO_OFFLOADING = "leave it out: the model stays on its device; batch_size=1 takes the least memory"

ANSWERS: Mapping[str, str] = {
    # --- opening and saving a model
    "from_pretrained": _LOADING,
    "from_single_file": _LOADING,
    "from_pipe": _LOADING,
    "from_config": _LOADING,
    "to": "the device and dtype are chosen when the model is opened: "
    "lorasmith.load_pipeline(path, device=..., dtype=...)",
    "cuda": 'open the model there: lorasmith.load_pipeline(path, device="cuda")',
    "cpu": 'open the model there: lorasmith.load_pipeline(path, device="cpu")',
    "save_pretrained": "convert the file with the command lorasmith model convert",
    # --- LoRAs
    "load_lora_weights": "use pipe.load_lora(path_or_name, weight=1.0)",
    "unload_lora_weights": _UNLOAD,
    "delete_adapters": _UNLOAD,
    "disable_lora": _UNLOAD,
    "enable_lora": "use pipe.load_lora(path_or_name, weight=1.0)",
    "set_adapters": _WEIGHTS,
    "get_active_adapters": "use pipe.loaded_loras",
    "get_list_adapters": "use pipe.loaded_loras",
    "fuse_lora": _FUSING,
    "unfuse_lora": _FUSING,
    "save_lora_weights": "use lorasmith.save_lora(lora, path), with what lorasmith.inject returned",
    "add_adapter": "use lorasmith.inject(pipe.model.unet, rank=...)",
    # --- components
    "unet": "use pipe.model.unet",
    "vae": "use pipe.model.vae",
    "text_encoder": "use pipe.model.text_encoder",
    "text_encoder_2": "use pipe.model.text_encoder_2",
    "tokenizer": "use pipe.model.tokenizer",
    "tokenizer_2": "use pipe.model.tokenizer_2",
    "components": "use pipe.model, which has them as attributes",
    "device": "use pipe.model.unet.device",
    "dtype": "use pipe.model.unet.dtype",
    "scheduler": 'a call chooses it by name: pipe(prompt, sampler="dpmpp_2m_karras")',
    "set_progress_bar_config": "give a call progress=function, which gets the steps just done",
    # --- memory and speed
    "enable_xformers_memory_efficient_attention": _MEMORY,
    "enable_attention_slicing": _MEMORY,
    "enable_vae_slicing": _MEMORY,
    "enable_vae_tiling": _MEMORY,
    "enable_model_cpu_offload": _NO_OFFLOADING,
    "enable_sequential_cpu_offload": _NO_OFFLOADING,
    # --- what there is not
    "load_textual_inversion": "textual inversion embeddings are not supported; train a LoRA",
    "load_ip_adapter": "IP-Adapters are not supported",
    "enable_freeu": "FreeU is not supported",
}
"""By name: what to use instead."""

KEYWORD_ANSWERS: Mapping[str, str] = {
    "steps": "use num_inference_steps",
    "num_images": "use num_images_per_prompt",
    "cfg_scale": "use guidance_scale",
    "scale": "use guidance_scale",
    "guidance": "use guidance_scale",
    "negative": "use negative_prompt",
    "scheduler": "use sampler, with a name such as dpmpp_2m_karras",
    "size": "use width and height",
    "cross_attention_kwargs": _WEIGHTS,
    "output_type": "leave it out: a call returns a list of PIL images, and pipe.generate_latents "
    "latents",
    "return_dict": "leave it out: a call returns a list of images",
    "eta": "the sampler says it: ddim adds no noise, ddpm and euler_a do",
    "prompt_embeds": "give the prompt as text, where (word:1.2) weighs a part",
    "callback": "use callback_on_step_end",
}
"""By keyword of a call: what to use instead."""


def explain_missing(owner: str, name: str) -> str:
    """Return the message of the AttributeError for a name that a pipeline does not have."""
    answer = f"; {ANSWERS[name]}" if name in ANSWERS else ""
    return f"{owner} has no attribute {name!r}{answer}"
