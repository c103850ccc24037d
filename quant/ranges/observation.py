"""One observation: what passes leave of each activation, joined over passes and ranks, becomes its range."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from quant.activation import QuantActivation
from quant.bits import INTEGER_BITS, BitWidth
from quant.ranges.observers import Observer, Seen
from quant.ranges.sampling import ChannelStatistics, channel_statistics, subsample
from quant.ranks import world_size


@dataclass(frozen=True)
class _Taken:
    """Values as they passed: holding them keeps their memory from being another tensor's."""

    values: Tensor
    version: int | None
    valid: Tensor | None
    statistics: ChannelStatistics

    def is_of(self, values: Tensor, valid: Tensor | None) -> bool:
        """Whether these are the same values, not changed since."""
        if self.version is None or values.is_inference() or values._version != self.version:
            return False
        same_mask = valid is self.valid if valid is None or self.valid is None else _same_memory(valid, self.valid)
        return same_mask and _same_memory(values, self.values)


class Observation:
    """Records passes; on closing, sets the ranges. Nothing waits for the device.

    Args:
        observer: finds the ranges.
    """

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        # Ranks share the sampling: their samples are gathered.
        self.samples = math.ceil(observer.samples / world_size())
        self.extremes: dict[QuantActivation, list[tuple[Tensor, Tensor]]] = {}
        self.kept: dict[QuantActivation, list[Tensor]] = {}
        # Of activations whose channels are shifted or divided, until it is known by what.
        self.channels: dict[QuantActivation, list[ChannelStatistics]] = {}
        self.last: _Taken | None = None

    @torch.no_grad()
    def record(self, activation: QuantActivation, values: Tensor, valid: Tensor | None) -> None:
        """Keep what the observer needs of one pass.

        Args:
            activation: whose values they are.
            values: any shape.
            valid: bool, broadcasts to the shape of values, False in padding; None when nothing is padded.
        """
        if activation.by_channel:
            self.channels.setdefault(activation, []).append(self._statistics(values, valid))
            return
        if self.samples:
            self.kept.setdefault(activation, []).append(subsample(values, valid, self.samples))
        # Zero is in every range, so a zeroed frame cannot widen it.
        low, high = _as_stored(values if valid is None else values.masked_fill(~valid, 0)).aminmax()
        self.extremes.setdefault(activation, []).append((low, high))

    @torch.no_grad()
    def close(self, activations: Sequence[QuantActivation], run: BitWidth | None, start_empty: bool) -> None:
        """Set the ranges of activations; those that had no pass lose theirs, or keep them for a moving average.

        Args:
            activations: the same on all ranks.
            run: the only run these ranges are for; None for any.
            start_empty: forget the ranges until now first.
        """
        self.last = None
        self._normalize([activation for activation in activations if activation.by_channel])
        infinity = torch.full((len(INTEGER_BITS),), torch.inf, device=activations[0].activation_min.device)
        before = [
            (infinity, -infinity) if start_empty else (activation.activation_min, activation.activation_max)
            for activation in activations
        ]
        previous_low, previous_high = (torch.stack(ends) for ends in zip(*before, strict=True))
        bits = [activation.bits_in_use(run) if activation in self.extremes else () for activation in activations]
        wanted = {b: [index for index, in_use in enumerate(bits) if b in in_use] for b in INTEGER_BITS}
        low, high = self._extremes(activations)
        seen = Seen(low, high, self._samples(activations), previous_low, previous_high, wanted)
        for activation, low, high, in_use in zip(activations, *self.observer.ranges(seen), bits, strict=True):
            activation.activation_min.copy_(low)
            activation.activation_max.copy_(high)
            passed = activation in self.extremes
            activation.calibrated = frozenset(in_use if self.observer.by_bits else INTEGER_BITS * passed)

    def _statistics(self, values: Tensor, valid: Tensor | None) -> ChannelStatistics:
        """The very same ones for layers that take one tensor after one another, as query, key and value do."""
        if self.last is None or not self.last.is_of(values, valid):
            version = None if values.is_inference() else values._version
            self.last = _Taken(values, version, valid, channel_statistics(values, valid, self.samples))
        return self.last.statistics

    def _normalize(self, activations: Sequence[QuantActivation]) -> None:
        """Set each channel's shift and spread, and go on with what is left of the values."""
        passed = [activation for activation in activations if activation in self.channels or world_size() > 1]
        if not passed:
            return
        self._set_shifts([activation for activation in passed if activation.activation_shift is not None])
        self._set_spreads([activation for activation in passed if activation.activation_spread is not None])
        for activation in passed:
            shift = 0 if activation.activation_shift is None else activation.activation_shift
            spread = 1 if activation.activation_spread is None else activation.activation_spread
            passes = self.channels.get(activation, [])
            if passes:
                self.extremes[activation] = [
                    (
                        ((seen.low - shift) / spread).amin().clamp_max(0),
                        ((seen.high - shift) / spread).amax().clamp_min(0),
                    )
                    for seen in passes
                ]
                self.kept[activation] = [((seen.samples - shift) / spread).flatten() for seen in passes]

    def _set_shifts(self, activations: Sequence[QuantActivation]) -> None:
        """To the channels' means."""
        sums = []
        for activation in activations:
            assert activation.activation_shift is not None
            nothing = activation.activation_shift.new_zeros(len(activation.activation_shift) + 1)
            passes = self.channels.get(activation, [])
            sums.append(sum((torch.cat([seen.total, seen.frames.view(1)]) for seen in passes), nothing))
        for activation, total in zip(activations, _joined(sums, dist.ReduceOp.SUM), strict=True):
            assert activation.activation_shift is not None
            activation.activation_shift.copy_(total[:-1] / total[-1].clamp_min(1))

    def _set_spreads(self, activations: Sequence[QuantActivation]) -> None:
        """For the channels' largest deviations from their shift; one spread for all that take the same tensors."""
        largest = []
        for activation in activations:
            assert activation.activation_spread is not None
            nothing = torch.zeros_like(activation.activation_spread)
            shift = nothing if activation.activation_shift is None else activation.activation_shift
            # A channel without a valid frame has infinite ends.
            deviations = [
                torch.maximum(shift - seen.low, seen.high - shift) for seen in self.channels.get(activation, [])
            ]
            largest.append(torch.stack([nothing, *deviations]).amax(dim=0))
        spreads = [
            activation.spread_for(values)
            for activation, values in zip(activations, _joined(largest, dist.ReduceOp.MAX), strict=True)
        ]
        together: dict[tuple[int, ...], list[Tensor]] = {}
        for activation, spread in zip(activations, spreads, strict=True):
            together.setdefault(self._tensors(activation), []).append(spread)
        # The least, as the largest weight of all would give (Xiao et al. 2023).
        shared = [torch.stack(together[self._tensors(activation)]).amin(dim=0) for activation in activations]
        for activation, spread in zip(activations, _joined(shared, dist.ReduceOp.MIN), strict=True):
            assert activation.activation_spread is not None
            activation.activation_spread.copy_(spread)

    def _tensors(self, activation: QuantActivation) -> tuple[int, ...]:
        """Equal for activations whose passes had the same tensors."""
        return tuple(map(id, self.channels.get(activation, [activation])))

    def _extremes(self, activations: Sequence[QuantActivation]) -> tuple[Tensor, Tensor]:
        """Low and high end of each pass, (activations, passes), over all ranks."""
        passes = _largest_over_ranks(max((len(seen) for seen in self.extremes.values()), default=0))
        infinity = torch.full((), torch.inf, device=activations[0].activation_min.device)
        lows, highs = [], []
        for activation in activations:
            seen = self.extremes.get(activation, [])
            missing = max(passes, 1) - len(seen)
            lows += [low for low, _ in seen] + [infinity] * missing
            highs += [high for _, high in seen] + [-infinity] * missing
        ends = torch.stack([-torch.stack(lows).float(), torch.stack(highs).float()])
        if world_size() > 1:
            dist.all_reduce(ends, op=dist.ReduceOp.MAX)
        low, high = ends.view(2, len(activations), -1)
        return -low, high

    def _samples(self, activations: Sequence[QuantActivation]) -> Tensor:
        """Samples of all passes and ranks, (activations, samples), NaN where there is none."""
        nothing = torch.full((1,), torch.nan, device=activations[0].activation_min.device)
        if not self.samples:
            return nothing.expand(len(activations), 1)
        kept = [torch.cat([nothing, *self.kept.get(activation, [])]) for activation in activations]
        samples = pad_sequence(kept, batch_first=True, padding_value=torch.nan)
        if world_size() == 1:
            return samples
        missing = _largest_over_ranks(samples.shape[1]) - samples.shape[1]
        samples = torch.nn.functional.pad(samples, (0, missing), value=torch.nan)
        gathered = [torch.empty_like(samples) for _ in range(world_size())]
        dist.all_gather(gathered, samples)
        return torch.cat(gathered, dim=1)


def _joined(parts: Sequence[Tensor], operation: dist.ReduceOp.RedOpType) -> Sequence[Tensor]:
    """Tensors of one axis, each joined over all ranks."""
    if not parts or world_size() == 1:
        return parts
    joined = torch.cat(list(parts))
    dist.all_reduce(joined, op=operation)
    return joined.split([len(part) for part in parts])


def _same_memory(values: Tensor, others: Tensor) -> bool:
    return (values.data_ptr(), values.shape, values.stride()) == (others.data_ptr(), others.shape, others.stride())


def _as_stored(values: Tensor) -> Tensor:
    """A view in the order of memory: what is not contiguous, as channels-last images are, aminmax copies first."""
    return values.permute(sorted(range(values.dim()), key=values.stride, reverse=True))


def _largest_over_ranks(count: int) -> int:
    if world_size() == 1:
        return count
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(count, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)
