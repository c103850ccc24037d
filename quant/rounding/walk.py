"""Layer by layer through a model: each is rounded for what it really takes, behind layers that are rounded already."""

from collections.abc import Callable, Iterator, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from quant.bias_correction import check_correctable
from quant.bits import FLOAT_BITS, FULL_PRECISION, BitWidth, parse_bit_width
from quant.grid.weights import group_size
from quant.layers import QuantLayer
from quant.prepare import at, quant_layers
from quant.rounding.moments import Moments, best_float_weight, tokens_of
from quant.rounding.solve import round_for_outputs


@dataclass(frozen=True)
class RoundedLayer:
    """What the rounding of one layer's weight costs its outputs.

    Attributes:
        layer: name.
        bits: of the weight; 32 where only the bias was corrected.
        nearest: squared error over variance of the outputs, each weight rounded to the nearest integer.
        error: the same, with the integers that were chosen.
    """

    layer: str
    bits: int
    nearest: float
    error: float


class _Reached(Exception):
    """A pass has come as far as it has to."""


@dataclass
class _Call:
    """How a model called a block, and the context it did so in: with it goes what is padding."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    context: Context


def round_weights(
    model: nn.Module,
    bit_width: str | BitWidth,
    batches: Sequence[Any],
    forward: Callable[[Any], Any] | None = None,
    blocks: Sequence[nn.Module] = (),
    resume: bool = False,
) -> Iterator[list[RoundedLayer]]:
    """Choose the weights' integers for one bit-width on data, in place; the weights and other bit-widths do not change.

    Layer by layer, in the order in which a pass reaches them. What a layer takes in full precision, and what it takes
    behind the layers already rounded, on its grid, give the float weight that would make up best for all that was lost
    so far; `round_for_outputs` rounds it, and the bias takes the difference of the means (`correct_bias` in the same
    passes).

    Args:
        model: prepared; calibrated, where ranges are static.
        bit_width: `w4a8`, ...
        batches: what `forward` takes; kept in memory, with two tensors of features each.
        forward: runs the model on one batch; the model itself by default.
        blocks: modules that run one after another, each on what the one before returned: passes then begin at the
            block they are about. Without them each pass begins at the model's inputs.
        resume: keep layers that have chosen integers at this bit-width.

    Yields:
        the layers that share an input, when they are done: at each of these points the work can be stopped.

    Raises:
        ValueError: full precision, no batch at all, a model that is not prepared, or with learned steps.
        NotCalibratedError: a layer whose activation range was never observed.

    Example:
        >>> import quant, torch
        >>> batches = [torch.randn(8, 4) for _ in range(3)]
        >>> model = quant.prepare(torch.nn.Linear(4, 2), quant.Policy(activation_range="per_token"))
        >>> [[layer.bits for layer in layers] for layers in quant.round_weights(model, "w4a8", batches)]
        [[8]]
    """
    run = parse_bit_width(bit_width)
    check_correctable(run)
    layers = quant_layers(model)
    if not batches:
        raise ValueError("rounding got no batch: give at least one")
    if next(iter(layers.values())).mode.learned is not None:
        raise ValueError("the model has learned steps: its weights are rounded on these")
    with at(model, run):
        pass
    if not resume:
        for layer in layers.values():
            layer.drop_run(run)
    training = model.training
    model.eval()
    try:
        yield from _Walk(model, run, batches, forward or model, blocks).through()
    finally:
        model.train(training)


class _Walk:
    """Where the work is: before the first block (stage -1), in a block, or behind the last (the number of blocks).

    Attributes:
        before: what the block before returned in full precision and in the run, batch by batch.
        calls: of the block that the work is in; the same.
    """

    def __init__(
        self, model: nn.Module, run: BitWidth, batches: Sequence[Any], forward: Callable[[Any], Any],
        blocks: Sequence[nn.Module],
    ) -> None:  # fmt: skip
        self.model, self.run, self.batches, self.forward, self.blocks = model, run, batches, forward, blocks
        self.names = {layer: name for name, layer in quant_layers(model).items()}
        self.stage = -1
        self.before: dict[BitWidth, list[Any]] = {}
        self.calls: dict[BitWidth, list[_Call]] = {}

    @torch.no_grad()
    def through(self) -> Iterator[list[RoundedLayer]]:
        """Round group after group."""
        for stage, group in self._groups():
            while self.stage < stage:
                self._advance()
            todo = [layer for layer in group if self.run not in layer.corrected]
            if todo:
                moments = self._moments(todo[0])
                yield [self._round(layer, moments) for layer in todo]
        for layer in self.names:
            if self.run not in layer.corrected:  # no pass comes by it
                layer.add_rounding(self.run)
                layer.add_correction(self.run)

    def _groups(self) -> list[tuple[int, list[QuantLayer]]]:
        """The stage of each group of layers that take the same input, in the order of a pass."""
        groups: list[tuple[int, list[QuantLayer]]] = []
        stage, last = -1, None

        def enter(block: nn.Module, inputs: Any) -> None:
            nonlocal stage
            stage += 1

        def note(layer: QuantLayer, inputs: tuple[Tensor, ...]) -> None:
            nonlocal last
            if any(layer in group for _, group in groups):
                return
            if groups and inputs[0] is last and _same_grid(layer, groups[-1][1][0], self.run):
                groups[-1][1].append(layer)
            else:
                groups.append((stage, [layer]))
            last = inputs[0]

        handles = [layer.register_forward_pre_hook(note) for layer in self.names]
        handles += [block.register_forward_pre_hook(enter) for block in self.blocks]
        if self.blocks:
            handles.append(self.blocks[-1].register_forward_hook(lambda block, inputs, output: enter(block, inputs)))
        self._pass(0, FULL_PRECISION, handles)
        return groups

    def _moments(self, layer: QuantLayer) -> Moments:
        moments: Moments | None = None
        for index in range(len(self.batches)):
            exact, seen = (self._tokens(index, layer, run) for run in (FULL_PRECISION, self.run))
            moments = moments or Moments.like(exact)
            moments.add(exact, seen)
        assert moments is not None
        return moments

    def _tokens(self, index: int, layer: QuantLayer, run: BitWidth) -> Tensor:
        """What a layer takes of one batch."""
        kept: list[Tensor] = []

        def keep(layer: QuantLayer, inputs: tuple[Tensor, ...]) -> None:
            kept.append(tokens_of(layer, layer.seen(inputs[0]).float()))
            raise _Reached

        self._pass(index, run, [layer.register_forward_pre_hook(keep)])
        return kept[0]

    def _round(self, layer: QuantLayer, moments: Moments) -> RoundedLayer:
        """Choose a layer's integers, scales and correction."""
        bits, granularity = layer.bits_at(self.run).weight, layer.rule.granularity
        seen, between = moments.covariances()
        weight, nearest = layer.weight.detach().float().flatten(1), layer.weight_at(self.run).flatten(1)
        targets = torch.cat(
            [best_float_weight(*part) for part in zip(weight.chunk(len(seen)), seen, between, strict=True)]
        )
        if bits == FLOAT_BITS or granularity == "per_tensor":
            layer.add_rounding(self.run)
        else:
            group = weight.shape[1] if granularity == "per_channel" else group_size(granularity)
            spread = layer.spread_at(self.run)
            on_grid, divided = (targets, seen) if spread is None else (targets * spread, seen / spread.outer(spread))
            solved = [
                round_for_outputs(target, covariance, bits, group)
                for target, covariance in zip(on_grid.chunk(len(divided)), divided, strict=True)
            ]
            integers, scales = (torch.cat(parts) for parts in zip(*solved, strict=True))
            layer.add_rounding(self.run, integers.view_as(layer.weight), scales)
        chosen = layer.weight_at(self.run).flatten(1)
        exact_mean, seen_mean = moments.means()
        layer.add_correction(self.run, _products(chosen, seen_mean) - _products(weight, exact_mean))
        variance = _variance(weight, seen)
        before, after = (_variance(error, seen) / variance for error in (nearest - weight, chosen - targets))
        return RoundedLayer(self.names[layer], bits, before, after)

    def _advance(self) -> None:
        """To the next stage: what its block is called with, batch by batch; that of the block before is let go."""
        before: dict[BitWidth, list[Any]] = {FULL_PRECISION: [], self.run: []}
        calls: dict[BitWidth, list[_Call]] = {FULL_PRECISION: [], self.run: []}
        for run in before:

            def returned(block: nn.Module, inputs: Any, output: Any) -> None:
                before[run].append(output)  # noqa: B023
                if self.stage + 1 == len(self.blocks):
                    raise _Reached

            def called(block: nn.Module, args: Any, kwargs: Any) -> None:
                calls[run].append(_Call(args, kwargs, copy_context()))  # noqa: B023
                raise _Reached

            for index in range(len(self.batches)):
                handles = []
                if self.stage >= 0:
                    handles.append(self.blocks[self.stage].register_forward_hook(returned))
                if self.stage + 1 < len(self.blocks):
                    next_block = self.blocks[self.stage + 1]
                    handles.append(next_block.register_forward_pre_hook(called, with_kwargs=True))
                self._pass_through_model(index, run, handles)
        self.before, self.calls, self.stage = before, calls, self.stage + 1

    def _pass(self, index: int, run: BitWidth, handles: list[RemovableHandle]) -> None:
        """One batch through the stage, with hooks that are taken off again."""
        if not 0 <= self.stage < len(self.blocks):
            return self._pass_through_model(index, run, handles)
        call, block = self.calls[run][index], self.blocks[self.stage]
        call.context.copy().run(self._until_reached, lambda: block(*call.args, **call.kwargs), run, handles)

    def _pass_through_model(self, index: int, run: BitWidth, handles: list[RemovableHandle]) -> None:
        """The same through the whole model; blocks before the stage's return what the last of them did."""
        skipped = self.blocks[: max(self.stage, 0)]
        for block in skipped:
            block.forward = lambda *args, **kwargs: self.before[run][index]
        try:
            self._until_reached(lambda: self.forward(self.batches[index]), run, handles)
        finally:
            for block in skipped:
                del block.forward

    def _until_reached(self, forward: Callable[[], Any], run: BitWidth, handles: list[RemovableHandle]) -> None:
        try:
            with at(self.model, run, reuse_weights=True):
                forward()
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()


def _same_grid(layer: QuantLayer, other: QuantLayer, run: BitWidth) -> bool:
    """Whether two layers with one input put it on one grid."""
    spread, others = layer.spread_at(run), other.spread_at(run)
    same_spread = spread is others if spread is None or others is None else torch.equal(spread, others)
    return (
        same_spread
        and layer.bits_at(run).activation == other.bits_at(run).activation
        and all(getattr(layer.rule, name) == getattr(other.rule, name) for name in ("shift", "activation_range"))
    )


def _products(weight: Tensor, means: Tensor) -> Tensor:
    """Mean outputs, shape (rows,), of a weight (rows, inputs) for mean inputs (parts, inputs)."""
    return torch.cat([rows @ mean for rows, mean in zip(weight.chunk(len(means)), means, strict=True)])


def _variance(weight: Tensor, covariances: Tensor) -> float:
    """Of the outputs of a weight (rows, inputs), summed over rows, for inputs of covariance (parts, inputs, inputs)."""
    parts = zip(weight.double().chunk(len(covariances)), covariances, strict=True)
    return float(sum(((rows @ covariance) * rows).sum() for rows, covariance in parts))
