"""The option ``--download``: without it nothing is asked of the network."""

from pathlib import Path
from typing import Annotated

import typer

from lorasmith.core.errors import ConfigError

Download = Annotated[
    bool, typer.Option("--download", help="Fetch the Hugging Face id if it is not in the cache.")
]


def fetch(model: Path | None) -> None:
    """Download a model's parts into the local cache, what is there already excepted.

    Raises:
        ConfigError: no model is named.
        WeightsError: it is no id, there is no such model, or no network.
    """
    from lorasmith.models.files.hub import download_model

    if model is None:
        raise ConfigError("--download goes with a Hugging Face id; name one with --model")
    download_model(model.as_posix())
