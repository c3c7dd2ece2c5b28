from lorasmith.core import errors


def test_close_names_are_suggested() -> None:
    assert errors.did_you_mean("stpes", ["steps", "seed", "size"]) == "; did you mean steps?"
    assert errors.did_you_mean("zzz", ["steps"]) == ""
    assert errors.did_you_mean("steps", []) == ""


def test_every_error_is_a_lorasmith_error() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    raised = [
        kind for kind in kinds if issubclass(kind, Exception) and not issubclass(kind, Warning)
    ]
    assert len(raised) >= 6
    assert all(issubclass(kind, errors.LorasmithError) for kind in raised)
