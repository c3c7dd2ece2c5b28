from pathlib import Path

from helpers.dataset_files import encoded, scene, write_image
from lorasmith.adapters.gating.gate_metadata import GateMetadata
from lorasmith.training.evaluation.eval_targets import MAX_REAL_SIDE, EvalTarget


def test_real_images_of_photographic_size_are_kept_small(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", encoded(scene(0, (6000, 4000)), "JPEG"), "ink a")
    write_image(tmp_path / "b.png", scene(1, (640, 480)), "ink b")
    concept = EvalTarget(GateMetadata(tag="ink"), [Path("x")], None).to_concept(tmp_path, None)
    assert [image.size for image in concept.images] == [(MAX_REAL_SIDE, 1365), (640, 480)]
    assert concept.images[1].tobytes() == scene(1, (640, 480)).tobytes()
