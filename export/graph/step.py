"""One step of a streaming encoder as a module: a chunk and the state in, features and the next state out."""

from torch import Tensor, nn

from encoders import StreamingTransformer
from encoders.models.streaming import State
from export.graph.signature import Axes

STATE: Axes = {
    "mel": ("batch", None, None),
    "stem": ("batch", None, None),
    "keys": (None, "batch", None, None),
    "values": (None, "batch", None, None),
    "past": ("batch",),
    "adaptor": ("batch", None, None),
}


class Step(nn.Module):
    """One step with positional tensors only, as the exporter wants it; the state's last part only with an adaptor."""

    def __init__(self, encoder: StreamingTransformer) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """log_mel, lengths and the state to features, feature_lengths and the next state."""
        log_mel, lengths, *state = inputs
        parts = len(state)
        if self.encoder.adaptor is None:
            state.append(state[1])  # not looked at
        features, feature_lengths, new = self.encoder.stream(log_mel, lengths, State(*state))
        return (features, feature_lengths, *new[:parts])
