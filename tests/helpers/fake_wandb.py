"""A stand-in for the package wandb."""

from types import ModuleType


class FakeWandb(ModuleType):
    """Stands in for the package, and records its calls."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[tuple] = []

    def init(self, **arguments: object) -> "FakeWandb":
        self.calls.append(("init", arguments))
        return self

    def log(self, figures: dict[str, float], step: int) -> None:
        self.calls.append(("log", figures, step))

    def finish(self) -> None:
        self.calls.append(("finish",))
