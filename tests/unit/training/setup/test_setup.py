"""A run's folder says how each of its images was scaled and cropped."""

import json
from pathlib import Path

from helpers.training.datasets import data_of, write
from lorasmith.config.train_config import ModelConfig, OutputConfig, TrainConfig, ValidationConfig
from lorasmith.training.setup.setup import open_trainer


def test_crop_record_is_in_the_run_folder(tmp_path: Path, tiny_model: Path) -> None:
    run = TrainConfig(
        data=data_of(write(tmp_path / "p", [(100, 64), (64, 64)])),
        output=OutputConfig(name=f"{tmp_path}/out/ink"),
        model=ModelConfig(path=tiny_model),
        validation=ValidationConfig(every_n_steps=0),
    )
    with open_trainer(run, None) as session:
        expected = session.dataset.describe_images()
    assert [entry["resized"] for entry in expected] == [[100, 64], [64, 64]]
    assert json.loads((tmp_path / "out" / "ink" / "pictures.json").read_text()) == expected
