"""Settings of `[data]`: the training images."""

import re
import unicodedata
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lorasmith.config.base import BaseConfig, RegisteredName, Side, UserPath
from lorasmith.config.data import RowFilter
from lorasmith.config.reading import foreign_values
from lorasmith.core.text.trigger_word import unescape_brackets
from lorasmith.registries import CAPTION_SOURCES

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


def _tag(text: str) -> str:
    words = text.split()
    if not words:
        raise ValueError("the tag is empty; give one or more words, such as inkmono")
    if not any(character.isalnum() for character in text):
        raise ValueError("the tag has no letter or digit; give one or more words, such as inkmono")
    if "," in text:
        raise ValueError("a tag has no comma: commas separate the tags of a caption")
    if any(unicodedata.category(character) in ("Cc", "Cs") for word in words for character in word):
        raise ValueError("the tag has characters that are not text; leave them out")
    if "<lora:" in text.lower():
        raise ValueError("a tag has no <lora: because prompts load files with it; leave it out")
    return unescape_brackets(" ".join(words))


def _color(text: str) -> str:
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ValueError("write a color as #rrggbb, such as #ffffff")
    return text.lower()


Tag = Annotated[str, AfterValidator(_tag)]
ClassWord = Annotated[str, AfterValidator(unescape_brackets)]


class ImageDataConfig(BaseConfig):
    """How images are used."""

    filters: tuple[RowFilter, ...] = ()
    """Only images whose metadata columns pass all of these are used."""
    caption_source: Annotated[str, RegisteredName(CAPTION_SOURCES)] = "auto"
    """Where captions come from: `txt` (`name.txt` beside `name.png`), `metadata` (metadata.jsonl or
    a packed tar), `folder-name` (kohya's `10_some words`) or a source that a package adds. `auto`:
    `metadata` where it exists, otherwise `txt` and then `folder-name`."""
    follow_links: bool = False
    """Follow links that lead out of the folder, of images, captions and folders. Those inside it
    are always followed. Captions end up in the LoRA file: only for folders that you made."""
    bad_images: Literal["stop", "skip"] = "stop"
    """What happens at an image or caption that cannot be used: stop before training, or skip it
    with a warning."""

    resolution: Annotated[Side | None, BeforeValidator(foreign_values.resolution)] = None
    """Side of a square image in pixels; wider and taller ones have about as many pixels. Left
    out, the resolution of the model."""
    buckets: bool = True
    """Keep the shapes of images: each goes to the nearest of a few aspect ratios. False crops all
    to squares."""
    bucket_reso_steps: Side = 64
    """Sides of buckets are multiples of this, and of what the model needs."""
    max_aspect_ratio: float = Field(default=2.0, ge=1.0, le=100.0)
    """Largest aspect ratio of a bucket, longer side over shorter; longer images are cropped."""
    crop: Literal["center", "random"] = "center"
    """Where images are cropped that are larger than their bucket. `random` differs every time and
    runs the VAE in every step."""
    flip_aug: bool = False
    """Mirror half of the images. Not for text, logos and faces that are not symmetric."""
    color_jitter: Share = 0.0
    """Brightness, contrast and saturation change at random by up to this share. Runs the VAE in
    every step."""
    inpaint_masks: Literal["file", "random"] = "file"
    """Masks for inpainting models: the white of `name.mask.png` is inpainted where that file
    exists, else that of random masks; or random masks for all."""
    num_random_masks: int = Field(default=8, ge=0, le=1000)
    """Random masks of each image, for inpainting models. 0 draws new ones every time and runs the
    VAE in every step."""
    aesthetic_score: float = Field(default=6.0, ge=0.0, le=10.0)
    """The aesthetic score that conditions the SDXL refiner."""
    background_color: Annotated[str, AfterValidator(_color)] = "#ffffff"
    """Color under transparent images."""

    shuffle_caption: bool = False
    """Shuffle the comma-separated tags of a caption every time."""
    keep_tokens: int = Field(default=1, ge=0)
    """How many tags at the start stay in place when captions are shuffled."""
    caption_dropout_rate: Share = 0.0
    """Share of the captions that are replaced by an empty one."""
    max_token_length: Annotated[int, Field(gt=0, le=7500, multiple_of=75)] = 225
    """How many tokens of a caption are read: 75, 150, 225 or a further multiple of 75; the rest is
    cut off. Captions of more than 75 tokens are encoded in chunks of 77 with begin and end, and all
    captions of a set get as many chunks as the longest one needs."""
    num_repeats: Annotated[int, Field(gt=0, le=10_000)] = 1
    """How often each image comes in an epoch; multiplied with the number of a `10_name` folder."""

    validation_split: Share | None = None
    """Share of the images that are kept out of training for the validation loss. Left out: a
    twelfth of sets of 24 and more, none of smaller ones."""
    reg_data_dir: UserPath | None = None
    """A folder of class images without the new thing (regularisation, prior preservation), in the
    same layouts."""
    reg_caption: str | None = None
    """Caption of class images that have none."""
    prior_loss_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the loss on class images."""

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


class _Location(BaseConfig):
    """Where the images are."""

    path: UserPath
    """A folder of images with captions (`name.txt` beside `name.png`, kohya's `10_name` folders
    or metadata.jsonl), or a packed tar."""


class _Tagged(_Location):
    """Where the images are, and their trigger word."""

    tag: Tag
    """The trigger word (or words), in every caption."""
    class_word: ClassWord = ""
    """What the images show without the tag, such as person. Preservation and evaluation put it in
    the place of the tag."""


class DataConfig(ImageDataConfig, _Tagged):
    """The training images."""


class FeatureDataConfig(ImageDataConfig, _Location):
    """The images of one feature. What is left out is as in `[data]`."""
