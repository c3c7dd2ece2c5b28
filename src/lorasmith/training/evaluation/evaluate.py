"""Evaluating LoRAs from Python: what ``lorasmith evaluate`` does."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lorasmith.core.device import compute_dtype, pick_device
from lorasmith.core.errors import ConfigError
from lorasmith.core.files import ensure_writable_folder
from lorasmith.evaluation.checkpoint_choice import choose_checkpoint
from lorasmith.evaluation.concept import EvalConcept
from lorasmith.evaluation.evaluator import Evaluator
from lorasmith.evaluation.feature_extractor import load_feature_extractor
from lorasmith.evaluation.image_generator import ImageGenerator
from lorasmith.evaluation.image_tables import make_image_tables
from lorasmith.evaluation.results import CheckpointChoice, Evaluation, EvaluationContext
from lorasmith.inference.options import SamplingOptions
from lorasmith.models.load import load_model
from lorasmith.reports.pages.evaluation import write_evaluation
from lorasmith.training.evaluation.eval_targets import EvalTarget, find_targets, resolve_target

if TYPE_CHECKING:
    from lorasmith.models.model import Model


def evaluate(
    targets: str | Path | Sequence[str | Path],
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    num_seeds: int = 8,
    first_seed: int = 0,
    max_leak: float | None = None,
    class_word: str | None = None,
    feature_extractor: str | Path | None = None,
    model: str | Path | None = None,
    options: SamplingOptions | None = None,
    allow_mismatch: bool = False,
    device: str = "auto",
    precision: Literal["fp32", "fp16", "bf16"] = "fp32",
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Measure trigger words (fidelity, leak, bleeding, forgetting), as docs/evaluation.md says.

    Args:
        targets: folders of runs, LoRA files, or their names in ``loras/``.
        data: captioned images, a folder or a packed tar; None is the run's validation images.
        out: folder for ``evaluation.json`` and ``evaluation.html``; None writes nothing.
        num_seeds: images of each kind of prompt, 2 or more; ``first_seed`` is that of the first.
        max_leak: of several files, choose one whose leak ratio in predictions is at most this.
        class_word: what the images show without the trigger word; None is the file's.
        feature_extractor: folder of a CLIP model or of Inception v3; None is the embedded one.
        model: base model, a folder, ``.safetensors`` file or cached id; None is the runs'.
        options: how images are generated; by default 20 steps, guidance scale 5, batches of 8.
        allow_mismatch: use LoRAs that fit only in part or hold more than a LoRA, with a warning.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: what the model computes in.
        progress: called with the number of image steps just done.

    Raises:
        WeightsError: a file is missing, is not a LoRA, has no trigger word or does not fit.
        DataError: a folder is not a run's, or there are fewer than two real images.
        ConfigError: the runs have several base models.
        OutputError: the results cannot be written.
    """
    paths = [resolve_target(target) for target in _to_list(targets)]
    eval_targets = find_targets(paths)
    folder = _prepare_folder(out)
    concepts = [target.to_concept(_to_path(data), class_word) for target in eval_targets]
    extractor = load_feature_extractor(_to_path(feature_extractor))
    base = _load_base_model(_to_path(model), eval_targets, device, precision)
    options = options or SamplingOptions(batch_size=8)
    generator = ImageGenerator(base, options, progress, strict=not allow_mismatch)
    evaluator = Evaluator(generator, extractor, range(first_seed, first_seed + num_seeds))
    return _evaluate(_join_names(paths), evaluator, eval_targets, concepts, max_leak, folder)


def _evaluate(
    name: str,
    evaluator: Evaluator,
    targets: Sequence[EvalTarget],
    concepts: Sequence[EvalConcept],
    max_leak: float | None,
    folder: Path | None,
) -> Evaluation:
    """Choose files, measure them, and write the results if there is a folder for them."""
    choices, concepts = _choose_files(evaluator, targets, concepts, max_leak)
    evaluation = Evaluation(
        context=_describe(name, evaluator, evaluator.generator.model, max_leak),
        results=evaluator.measure(concepts),
        choices=choices,
        image_tables=make_image_tables(evaluator, concepts),
    )
    if folder is not None:
        write_evaluation(folder, evaluation)
    return evaluation


def _join_names(paths: Sequence[Path]) -> str:
    return ", ".join(path.resolve().stem for path in paths)


def default_output_folder(targets: Sequence[str | Path]) -> Path:
    """Return where the command writes: a single run's folder, or ``evaluation``."""
    paths = [resolve_target(target) for target in targets]
    return paths[0] if len(paths) == 1 and paths[0].is_dir() else Path("evaluation")


def _to_list(targets: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    return [targets] if isinstance(targets, str | Path) else targets


def _to_path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()


def _prepare_folder(out: str | Path | None) -> Path | None:
    return None if out is None else ensure_writable_folder(Path(out).expanduser())


def _load_base_model(
    model: Path | None,
    targets: Sequence[EvalTarget],
    device: str,
    precision: Literal["fp32", "fp16", "bf16"],
) -> "Model":
    opened = load_model(_find_base_model(model, targets))
    return opened.to(pick_device(device), compute_dtype(precision))


def _find_base_model(model: Path | None, targets: Sequence[EvalTarget]) -> Path | None:
    """Return the base model to use, or None for the embedded one.

    Raises:
        ConfigError: the runs have several.
    """
    if model is not None:
        return model
    models = {target.config.model.path for target in targets if target.config is not None}
    if len(models) > 1:
        names = ", ".join(sorted(str(path or "the embedded model") for path in models))
        raise ConfigError(f"--model: the runs were trained on {names}; choose one of them")
    return next(iter(models), None)


def _choose_files(
    evaluator: Evaluator,
    targets: Sequence[EvalTarget],
    concepts: Sequence[EvalConcept],
    max_leak: float | None,
) -> tuple[list[CheckpointChoice], list[EvalConcept]]:
    """Choose the best file of every concept that has several, or all with a limit."""
    choices, chosen_concepts = [], []
    for target, concept in zip(targets, concepts, strict=True):
        if len(target.files) > 1 or max_leak is not None:
            choice = choose_checkpoint(
                evaluator.predictions(concept), target.tag, target.files_with_steps(), max_leak
            )
            choices.append(choice)
            concept = replace(concept, file=choice.best)
        chosen_concepts.append(concept)
    return choices, chosen_concepts


def _describe(
    name: str, evaluator: Evaluator, model: "Model", max_leak: float | None
) -> EvaluationContext:
    options = evaluator.generator.options
    return EvaluationContext(
        name=name,
        model=model.path.name,
        feature_extractor=evaluator.extractor.name,
        device=model.unet.device.type,
        seeds=evaluator.seeds,
        sampling={
            "steps": options.num_inference_steps,
            "guidance": options.guidance_scale,
            "sampler": options.sampler,
            "side": evaluator.generator.image_side,
        },
        max_leak=max_leak,
    )
