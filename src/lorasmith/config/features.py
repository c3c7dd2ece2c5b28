"""Settings of a run of several features, each with its own trigger word (tag)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from lorasmith.config.base import BaseConfig, Positive, PositiveFloat
from lorasmith.config.lora import GateKind, LoraConfig, LoraOverride, Targets
from lorasmith.config.optimization import TrainerConfig
from lorasmith.config.reading.load import load_config, load_saved_config
from lorasmith.config.reading.read_toml import read_toml
from lorasmith.config.train_config import (
    ModelConfig,
    OutputConfig,
    PreserveConfig,
    TrackConfig,
    TrainConfig,
    ValidationConfig,
)
from lorasmith.config.train_data import (
    ClassWord,
    DataConfig,
    FeatureDataConfig,
    ImageDataConfig,
    Tag,
)
from lorasmith.core.errors import ConfigError
from lorasmith.core.text.trigger_word import contains_tag, split_tag

_LONGEST_NAME = 60


def _as_data(value: Any) -> Any:
    """Take a path for a table that has nothing else."""
    return {"path": value} if isinstance(value, str | Path) else value


class FeatureConfig(BaseConfig):
    """One feature: a tag and the images that show it. What is left out here is as in
    `[lora]` and `[train]`."""

    tag: Tag
    """The trigger word (or words), in every caption of its images and in no other."""
    class_word: ClassWord = ""
    """What its images show without the tag, such as person."""
    data: Annotated[FeatureDataConfig, BeforeValidator(_as_data)]
    """Its images: a path, or a table with the keys of [FeatureDataConfig](#featuredataconfig)."""
    targets: Targets | None = None
    """Layers that get an adapter, as in `lora.targets`."""
    rank: Positive | None = None
    """Inner width of its adapters."""
    alpha: PositiveFloat | None = None
    """Their scale is alpha / rank; left out where a rank is given here, alpha is that rank."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate."""
    overrides: tuple[LoraOverride, ...] | None = None
    """Layers with another rank, alpha or learning rate, as in `lora.overrides`."""
    gate: GateKind | None = None
    """What activates it, as in `lora.gate`."""

    @property
    def name(self) -> str:
        """The tag as a part of file names."""
        safe = re.sub(r"[^\w.-]+", "-", self.tag)[:_LONGEST_NAME].strip("-.")
        return safe or "feature"


class FeaturesTrainerConfig(TrainerConfig):
    """How the features are trained; steps and batch sizes are those of each feature."""

    mode: Literal["staged", "joint"] = "staged"
    """staged: one feature after another; earlier ones are frozen, and active where captions have
    their tags. joint: all at once; a step has a batch of each feature, each image runs only its own
    feature's adapters, and all share one pass of the frozen model."""


class FeaturesConfig(BaseConfig):
    """Everything about one `lorasmith train` run with `[[feature]]` tables: a LoRA for each."""

    data: ImageDataConfig = ImageDataConfig()
    """How the images are used; a feature can override it."""
    feature: Annotated[tuple[FeatureConfig, ...], Field(min_length=1)]
    """The features, in the order in which `staged` learns them."""
    output: OutputConfig
    """The result: the LoRA of each feature is `NAME-TAG.safetensors`."""
    model: ModelConfig = ModelConfig()
    """The base model."""
    lora: LoraConfig = LoraConfig()
    """The adapters."""
    train: FeaturesTrainerConfig = FeaturesTrainerConfig()
    """The training."""
    preserve: PreserveConfig = PreserveConfig()
    """The preservation loss: images without the tag stay as they are."""
    validation: ValidationConfig = ValidationConfig()
    """Validation during training."""
    track: TrackConfig = TrackConfig()
    """Where metrics are logged."""

    @model_validator(mode="before")
    @classmethod
    def _features_have_what_all_have(cls, tree: Any) -> Any:
        """Lay `[data]` under each feature's own."""
        if not isinstance(tree, Mapping) or not isinstance(tree.get("data"), Mapping):
            return tree
        features = [_with_data(feature, tree["data"]) for feature in tree.get("feature", ())]
        return {**tree, "feature": features}

    @model_validator(mode="after")
    def _features_go_together(self) -> Self:
        for problem in _clashes(self.feature):
            raise ValueError(problem)
        if self.preserve.earlier_features_strength and self.train.mode == "joint":
            raise ValueError(
                "preserve.earlier_features_strength goes with train.mode = staged: joint features "
                "never change at once"
            )
        try:  # settings that do not go together are refused before anything is done
            self.train_configs()
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("settings: ")) from None
        return self

    def train_configs(self) -> list[TrainConfig]:
        """Return the settings of each feature as those of a separate run."""
        return [self._run_of(feature) for feature in self.feature]

    def _run_of(self, feature: FeatureConfig) -> TrainConfig:
        images = feature.data.model_dump(exclude_unset=True)
        data = DataConfig(**images, tag=feature.tag, class_word=feature.class_word)
        lora = _changed(
            self.lora,
            targets=feature.targets,
            rank=feature.rank,
            alpha=feature.alpha or (None if feature.rank is None else float(feature.rank)),
            overrides=feature.overrides,
            gate=feature.gate,
        )
        train = self.train.model_dump(exclude={"mode"}, exclude_unset=True)
        if feature.learning_rate is not None:
            train["learning_rate"] = feature.learning_rate
        return TrainConfig(
            data=data,
            output=OutputConfig(name=f"{self.output.name}-{feature.name}"),
            model=self.model,
            lora=lora,
            train=TrainerConfig(**train),
            preserve=self.preserve,
            validation=self.validation,
            track=self.track,
        )


def load_train_config(
    path: Path | None, overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> TrainConfig | FeaturesConfig:
    """Read the settings of a run; one with ``[[feature]]`` tables is of several features.

    Raises:
        ConfigError: unreadable file, unknown key (with close matches) or invalid value.
    """
    tree = {**(base or {}), **(read_toml(path) if path is not None else {})}
    if "feature" in tree:
        for key, option in (("data.path", "--data"), ("data.tag", "--tag")):
            if any(override.partition("=")[0].strip() == key for override in overrides):
                raise ConfigError(f"{option}: the settings have [[feature]] tables, which say that")
        return load_config(FeaturesConfig, path, overrides, base)
    return load_config(TrainConfig, path, overrides, base)


def load_saved_train_config(path: Path) -> TrainConfig | FeaturesConfig:
    """Read the settings in a run's folder, of this version or an earlier one.

    Raises:
        ConfigError: unreadable file, unknown key or invalid value.
    """
    if "feature" in read_toml(path):
        return load_saved_config(FeaturesConfig, path)
    return load_saved_config(TrainConfig, path)


def require_single_feature(
    run: TrainConfig | FeaturesConfig, instead: str = "lorasmith.train_features"
) -> TrainConfig:
    """Return settings that must be those of one feature.

    Args:
        run: the settings.
        instead: the function for several, for the message.

    Raises:
        ConfigError: they have ``[[feature]]`` tables.
    """
    if isinstance(run, FeaturesConfig):
        raise ConfigError(f"the settings have [[feature]] tables: use {instead}")
    return run


def to_train_config(
    config: TrainConfig | FeaturesConfig | Mapping[str, Any] | str | Path,
) -> TrainConfig | FeaturesConfig:
    """Return settings that were given in one of several forms.

    Raises:
        ConfigError: they are unknown, missing or out of range, or in no such form.
    """
    if isinstance(config, TrainConfig | FeaturesConfig):
        return config
    if isinstance(config, Mapping):
        return load_train_config(None, base=config)
    if isinstance(config, str | Path):
        return load_train_config(Path(config).expanduser())
    raise ConfigError(
        f"settings are a TrainConfig, a dictionary or the path of a TOML file, not "
        f"{type(config).__name__}"
    )


def _with_data(feature: Any, common: Mapping[str, Any]) -> Any:
    feature_data = _as_data(feature.get("data")) if isinstance(feature, Mapping) else None
    if not isinstance(feature_data, Mapping):
        return feature
    return {**feature, "data": {**common, **feature_data}}


def _changed(lora: LoraConfig, **changes: Any) -> LoraConfig:
    """Return settings with all changes that are not None."""
    given = {name: value for name, value in changes.items() if value is not None}
    return LoraConfig(**{**lora.model_dump(exclude_unset=True), **given})


def _clashes(features: Sequence[FeatureConfig]) -> Iterator[str]:
    """Yield a message for each pair of tags that cannot be trained in one run."""
    for index, feature in enumerate(features):
        for other in features[:index]:
            tag, other_tag = feature.tag, other.tag
            if split_tag(tag) == split_tag(other_tag):
                yield f"feature: the tag {feature.tag!r} is there twice; each feature has its own"
            elif contains_tag(tag, other_tag) or contains_tag(other_tag, tag):
                short, long = sorted((feature.tag, other.tag), key=len)
                yield (
                    f"feature: the tag {short!r} stands inside the tag {long!r}, which would "
                    "activate both; choose others"
                )
            elif feature.name.casefold() == other.name.casefold():
                yield (
                    f"feature: the tags {other.tag!r} and {feature.tag!r} are the same in file "
                    "names; choose others"
                )
