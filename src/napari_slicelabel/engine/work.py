"""How much a run has to do: what a method says of itself before it begins."""

from dataclasses import dataclass, replace

from napari_slicelabel.engine.pieces import Piece

# What float32 takes of what bfloat16 takes: on a CPU without it 3.6 (2D) and 4.3 times (3D) were measured.
_FLOAT32 = 3.0
# On a GPU: half of what they took beside 14 other runs on an H200.
LEAST_STEP_S, LEAST_PREDICTION_S = 0.025, 0.03


@dataclass(frozen=True, slots=True)
class Stack:
    """A volume to fill: its pieces (none where nothing is annotated), how many slices, and pixels in each."""

    pieces: tuple[Piece, ...]
    slices: int
    pixels: int

    @property
    def annotated(self) -> int:
        """How many slices are annotated."""
        return len({anchor for piece in self.pieces for anchor in piece.anchors})


@dataclass(frozen=True, slots=True)
class Work:
    """How much there is to do.

    Attributes
    ----------
    rounds : int
        How often the method learns from its own labels.
    steps : int
        Training steps, over all stages.
    predictions : int
        Slices that are predicted; one that is predicted twice counts twice.
    step_s, prediction_s : float
        Guesses at how long one of each takes, in seconds, which a run corrects with its own pace.
    memory_bytes : int
        A guess at what it needs, on the device and off it.
    """

    rounds: int
    steps: int
    predictions: int
    step_s: float
    prediction_s: float
    memory_bytes: int

    @property
    def seconds(self) -> float:
        """How long all of it takes."""
        return self.steps * self.step_s + self.predictions * self.prediction_s

    def in_float32(self) -> "Work":
        """Return the same where a CPU without bfloat16 does it: guesses are for one that has it."""
        return replace(self, step_s=_FLOAT32 * self.step_s, prediction_s=_FLOAT32 * self.prediction_s)

    def on_gpu(self) -> "Work":
        """Return the same where a GPU does it: a step, or a slice, waits for what is beside it, however small."""
        return replace(
            self, step_s=max(self.step_s, LEAST_STEP_S), prediction_s=max(self.prediction_s, LEAST_PREDICTION_S)
        )

    def and_then(self, other: "Work") -> "Work":
        """Return this and something else, one after the other."""
        steps, predictions = self.steps + other.steps, self.predictions + other.predictions
        return Work(
            rounds=self.rounds + other.rounds,
            steps=steps,
            predictions=predictions,
            step_s=(self.steps * self.step_s + other.steps * other.step_s) / max(1, steps),
            prediction_s=(self.predictions * self.prediction_s + other.predictions * other.prediction_s)
            / max(1, predictions),
            memory_bytes=max(self.memory_bytes, other.memory_bytes),
        )
