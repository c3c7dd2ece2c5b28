"""``lorasmith lora project``: restrict a LoRA to its tag, for programs without gates."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorasmith.cli.lora.options import IgnoreUnknown
from lorasmith.cli.options.common import ModelPath
from lorasmith.cli.output import print_line
from lorasmith.core.errors import ConfigError
from lorasmith.core.files import check_not_existing

if TYPE_CHECKING:
    from lorasmith.adapters.tools.kv_projection import ProjectionResult

File = Annotated[Path, typer.Argument(help="A LoRA file.", show_default=False)]
Data = Annotated[
    Path,
    typer.Option(
        help="The captioned images that it was trained on; only the captions count.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option(help="The new file; must not exist.", show_default=False)]
Tag = Annotated[str | None, typer.Option(help="Its trigger word (tag).", show_default="the file's")]
ClassWord = Annotated[
    str | None,
    typer.Option("--class", help="The class word.", show_default="the file's"),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="A text that it must not change. Repeatable."),
]
Strength = Annotated[
    float, typer.Option(min=1e-6, help="Larger leaks less, and keeps less of the feature.")
]


def register(group: typer.Typer) -> None:
    """Add the command to those about LoRA files."""
    group.command("project")(project)


def project(
    file: File,
    data: Data,
    out: Out,
    tag: Tag = None,
    class_word: ClassWord = None,
    prompts: Prompts = None,
    model: ModelPath = None,
    strength: Strength = 1.0,
    ignore_unknown: IgnoreUnknown = False,
) -> None:
    """Restrict a LoRA's cross-attention keys and values to its tag.

    For programs that have no gates: the part of these layers that acts on other words than the tag
    is projected out, in closed form. The captions without the tag, the class word and the empty
    prompt say what other words are. Other layers stay as they are; a LoRA trained with `targets =
    "*.attn2.to_k, *.attn2.to_v"` has none.

    Example: `lorasmith lora project loras/inkmono.safetensors --data pictures --out plain.safetensors`
    """  # noqa: E501 (one command, one line)
    from lorasmith.adapters.files.derived_metadata import update_metadata
    from lorasmith.adapters.files.lora_family import detect_lora_family
    from lorasmith.adapters.files.lora_file import load_lora_file, save_lora_file
    from lorasmith.adapters.gating.gate_metadata import read_gate
    from lorasmith.adapters.tools.canonical_layers import canonical_layers
    from lorasmith.adapters.tools.kv_projection import measure_moments, project_layers
    from lorasmith.models.load import load_model

    target = out.expanduser()
    check_not_existing(target)
    lora = load_lora_file(file.expanduser(), ignore_unknown)
    family = detect_lora_family(lora)[0]
    layers = canonical_layers(lora, family, ignore_unknown)
    gate = read_gate(lora)
    tag, other = tag or gate.tag, gate.class_word if class_word is None else class_word
    if not tag:
        raise ConfigError(f"{file}: the file does not say its tag; name it with --tag")
    tagged, others = _read_texts(data.expanduser(), tag, other, prompts or [])
    result = project_layers(
        layers, measure_moments(load_model(model), tag, tagged, others), strength
    )
    name = target.name.removesuffix(".safetensors")
    metadata = update_metadata(lora, result.layers, family, name)
    metadata |= {"ss_output_name": name, "modelspec.title": name}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_lora_file(target, result.layers, metadata, embeddings=lora.embeddings)
    print_line(f"{target}: {_describe(result)}")


def _describe(result: "ProjectionResult") -> str:
    return (
        f"{result.projected_layers} of {len(result.layers)} layers projected; what they do at "
        f"other words fell from {result.leak_before:.1%} to {result.leak_after:.1%} of what they "
        f"do at the tag's, of which {result.retained:.0%} is kept"
    )


def _read_texts(
    data: Path, tag: str, class_word: str, prompts: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the captions with a tag, and texts that the LoRA must not change.

    Raises:
        ConfigError: no caption has the tag.
    """
    from lorasmith.core.text.trigger_word import contains_tag
    from lorasmith.data.caption_tags import remove_tag
    from lorasmith.data.reading.reader import read_rows

    captions = list(dict.fromkeys(row.caption for row in read_rows(data)))
    tagged = [caption for caption in captions if contains_tag(caption, tag)]
    if not tagged:
        raise ConfigError(f"{data}: none of the captions has the tag {tag!r}; check --tag")
    plain = [remove_tag(caption, tag, class_word) for caption in captions]
    return tagged, list(dict.fromkeys([*plain, class_word, "", *prompts]))
