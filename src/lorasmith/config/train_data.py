"""Settings about the pictures that a LoRA learns from."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lorasmith.config import foreign_names
from lorasmith.config.base import BaseConfig, RegisteredName, UserPath
from lorasmith.config.data import RowFilter
from lorasmith.registries import CAPTION_SOURCES

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


def _tag(text: str) -> str:
    words = text.split()
    if not words or not any(character.isalnum() for character in text):
        raise ValueError("the tag is empty; give one or more words, such as inkmono")
    if "," in text:
        raise ValueError("a tag has no comma; captions are divided into parts by them")
    return " ".join(words)


def _colour(text: str) -> str:
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ValueError("write a colour as #rrggbb, such as #ffffff")
    return text.lower()


Tag = Annotated[str, AfterValidator(_tag)]


class ImageDataConfig(BaseConfig):
    """How pictures are used, whichever they are."""

    filters: tuple[RowFilter, ...] = ()
    """Only pictures whose metadata columns pass all of these are used."""
    caption_source: Annotated[str, RegisteredName(CAPTION_SOURCES)] = "auto"
    """Where captions come from: `txt` (`name.txt` beside `name.png`), `metadata` (metadata.jsonl or
    a packed tar), `folder-name` (kohya's `10_some words`) or a source that a package adds. `auto`:
    `metadata` where it exists, otherwise `txt` and then `folder-name`."""
    bad_images: Literal["stop", "skip"] = "stop"
    """What a picture or caption that cannot be used does: stop before training, or be left out
    with a warning."""

    resolution: Annotated[Positive | None, BeforeValidator(foreign_names.resolution)] = None
    """Side of a square picture in pixels; wider and taller ones have about as many pixels. Left
    out, what the model was trained at."""
    buckets: bool = True
    """Keep the pictures' shapes: each goes to the nearest of a few aspect ratios. False crops all
    to squares."""
    bucket_reso_steps: Positive = 64
    """Sides of buckets are multiples of this (raised to what the model needs)."""
    max_aspect_ratio: float = Field(default=2.0, ge=1.0)
    """Longest shape of a bucket, longer side over shorter; longer pictures are cropped to it."""
    crop: Literal["center", "random"] = "center"
    """What is kept of a picture that is larger than its bucket. `random` differs every time and
    therefore needs the VAE in every step."""
    flip_aug: bool = False
    """Mirror half of the pictures. Not for text, logos and faces that are not symmetric."""
    color_jitter: Share = 0.0
    """Brightness, contrast and saturation are changed at random by up to this share. Needs the
    VAE in every step."""
    inpaint_masks: Literal["file", "random"] = "file"
    """What an inpainting model is taught to paint anew: the white of `name.mask.png` where that
    file exists and of random masks elsewhere, or of random masks for all."""
    num_random_masks: int = Field(default=8, ge=0)
    """How many random masks each picture gets, for an inpainting model. 0 draws new ones every time
    and therefore needs the VAE in every step."""
    aesthetic_score: float = Field(default=6.0, ge=0.0, le=10.0)
    """What the SDXL refiner is told of how good the pictures look."""
    background_color: Annotated[str, AfterValidator(_colour)] = "#ffffff"
    """Colour under transparent pictures."""

    shuffle_caption: bool = False
    """Put the comma-separated parts of a caption into random order every time."""
    keep_tokens: int = Field(default=1, ge=0)
    """How many parts at the start stay in place when captions are shuffled."""
    caption_dropout_rate: Share = 0.0
    """Share of the captions that are replaced by an empty one."""
    max_token_length: Annotated[int, Field(gt=0, multiple_of=75)] = 225
    """How many tokens of a caption are read: 75, 150, 225 or a further multiple of 75; the rest is
    cut off. Captions of more than 75 tokens are encoded in chunks of 77 with begin and end, and all
    captions of a set get as many chunks as the longest one needs."""
    num_repeats: Positive = 1
    """How often each picture comes in an epoch; multiplied with the number of a `10_name`
    folder."""

    validation_split: Share | None = None
    """Share of the pictures kept out of training for the held-out loss. Left out: a twelfth of
    sets of 24 and more, none of smaller ones."""
    reg_data_dir: UserPath | None = None
    """Pictures of the class without the new thing (regularisation, prior preservation), in the
    same layouts."""
    reg_caption: str | None = None
    """Caption of class pictures that have none."""
    prior_loss_weight: float = Field(default=1.0, ge=0.0)
    """Weight of their loss."""

    cache: bool = True
    """Keep latents and text embeddings on disk for the next run."""
    cache_dir: UserPath | None = None
    """Where; left out, the user's cache folder (`LORASMITH_CACHE` moves it)."""

    @model_validator(mode="after")
    def _class_settings_go_together(self) -> Self:
        if self.reg_caption is not None and self.reg_data_dir is None:
            raise ValueError("reg_caption goes with reg_data_dir")
        return self

    @property
    def max_chunks(self) -> int:
        """How many chunks of 75 tokens a caption is read in at most."""
        return self.max_token_length // 75

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """The background as three bytes."""
        red, green, blue = bytes.fromhex(self.background_color[1:])
        return red, green, blue


class _Place(BaseConfig):
    """Where the pictures are."""

    path: UserPath
    """A folder of pictures with captions (`name.txt` beside `name.png`, kohya's `10_name` folders
    or metadata.jsonl), or a packed tar."""


class _Tagged(_Place):
    """Where the pictures are, and what stands for them."""

    tag: Tag
    """The words that shall call the LoRA. They stand in every caption of the pictures."""
    class_word: str = ""
    """What the pictures show without the tag, such as person. Preservation puts it in the tag's
    place, and evaluations draw it."""


class DataConfig(ImageDataConfig, _Tagged):
    """The pictures that are learned from."""


class FeatureDataConfig(ImageDataConfig, _Place):
    """The pictures of one feature. What is left out is as in `[data]`."""
