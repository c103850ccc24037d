import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ssql.data import Digits
from ssql.data.sampler import BatchesBySeconds, ResumableSampler


class Recorder(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["indices"].tolist())
        return self.layer(torch.ones(1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def record(folder, steps, checkpoint=None, workers=0):
    model = Recorder()
    trainer = lightning.Trainer(
        max_steps=steps, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        use_distributed_sampler=False, callbacks=[ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)],
    )  # fmt: skip
    trainer.fit(model, Digits(batch_size=400, num_workers=workers), ckpt_path=checkpoint, weights_only=True)
    return model.seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stop", [2, 3, 4, 6])
def test_resumed_run_sees_the_same_batches(tmp_path, stop, workers):
    """Three batches an epoch: stops in mid-epoch and at an epoch's end; workers begin before the epoch is known."""
    whole = record(tmp_path / "whole", 9)
    first = record(tmp_path / "parts", stop)
    rest = record(tmp_path / "parts", 9, tmp_path / "parts" / "last.ckpt", workers)
    assert first + rest == whole
    assert whole[0] != whole[3]


def test_ranks_share_an_epoch_without_overlap():
    shares = [list(ResumableSampler(11, 2, seed=1, rank=rank, world_size=2)) for rank in range(2)]
    assert [len(share) for share in shares] == [4, 4]
    assert len(set(shares[0]) | set(shares[1])) == 8


def test_skip_holds_for_one_epoch_only():
    sampler = ResumableSampler(10, 2, seed=1, skip=2)
    whole = list(ResumableSampler(10, 2, seed=1))
    assert list(sampler) == whole[4:]
    assert list(sampler) == whole
    assert len(sampler) == 10


@pytest.mark.parametrize("world_size", [1, 2])
def test_clips_of_like_length_share_a_batch_and_every_rank(world_size):
    lengths = torch.randint(100, 1000, (320,), generator=torch.Generator().manual_seed(0)).tolist()
    ranks = [
        list(ResumableSampler(320, 8, seed=1, rank=rank, world_size=world_size, lengths=lengths))
        for rank in range(world_size)
    ]
    assert sorted(index for rank in ranks for index in rank) == list(range(320))
    batches = [[lengths[i] for rank in ranks for i in rank[k : k + 8]] for k in range(0, len(ranks[0]), 8)]
    padding = sum(max(batch) * len(batch) for batch in batches) / sum(lengths)
    assert padding < 1.15  # without lengths: 1.6
    longest = [max(batch) for batch in batches]
    assert longest != sorted(longest)
    sampler = ResumableSampler(320, 8, seed=1, world_size=world_size, lengths=lengths)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first


def ranks_by_seconds(lengths, samples, world_size, epoch=0):
    samplers = [BatchesBySeconds(lengths, samples, 1, rank, world_size) for rank in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("clips", [3, 41, 400])
def test_batches_by_seconds_hold_each_clip_once_and_no_more_than_they_may(clips, world_size):
    lengths = torch.randint(8_000, 160_000, (clips,), generator=torch.Generator().manual_seed(clips)).tolist()
    counts = set()
    for epoch in range(3):
        ranks = ranks_by_seconds(lengths, 640_000, world_size, epoch)
        seen = sorted(index for rank in ranks for batch in rank for index in batch)
        assert len(seen) == len(set(seen)) == clips // world_size * world_size
        assert all(len(batch) * max(lengths[i] for i in batch) <= 640_000 for rank in ranks for batch in rank)
        # Losses that gather over ranks need parts of the same size.
        assert all([len(batch) for batch in rank] == [len(batch) for batch in ranks[0]] for rank in ranks)
        counts.add(len(ranks[0]))
    assert counts == {len(BatchesBySeconds(lengths, 640_000, 1, 0, world_size))}


def test_batches_by_seconds_are_of_like_length_and_new_in_each_epoch():
    lengths = torch.randint(8_000, 160_000, (2000,), generator=torch.Generator().manual_seed(0)).tolist()
    (first,), (second,) = (ranks_by_seconds(lengths, 1_600_000, 1, epoch) for epoch in (0, 1))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in first)
    assert padded < 1.1 * sum(lengths)
    assert {frozenset(batch) for batch in first}.isdisjoint(frozenset(batch) for batch in second)
    longest = [max(lengths[i] for i in batch) for batch in first]
    assert longest != sorted(longest)


def test_batches_by_seconds_go_on_in_mid_epoch():
    lengths = [8_000 + 100 * place for place in range(100)]
    whole = list(BatchesBySeconds(lengths, 160_000, 1))
    rest = BatchesBySeconds(lengths, 160_000, 1, skip=3)
    assert list(rest) == whole[3:]
    assert list(rest) == whole
    assert len(rest) == len(whole)


def test_batches_by_seconds_that_cannot_be():
    with pytest.raises(ValueError, match=r"batch_seconds 15 does not hold two clips of 10 s, the longest: raise it or"):
        BatchesBySeconds([160_000, 16_000], 240_000, 1)
    with pytest.raises(ValueError, match="1 training clips are fewer than 2 processes"):
        BatchesBySeconds([16_000], 240_000, 1, 0, 2)
    with pytest.raises(ValueError, match="batch_seconds is for audio: images take batch_size"):
        Digits(batch_seconds=3)
