"""Test clips behind noise: whatever learned from clean training clips is tested at known signal-to-noise ratios."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from quant.checks import check_at_least
from ssql.data.batch import Batch
from ssql.data.module import DataModule, Split

Noise = Literal["white", "babble"]
TALKERS = 4


class Noisy(DataModule):
    """Another data module, and its test clips behind white noise, and behind babble of four training clips, at each
    signal-to-noise ratio (splits like `white 10 dB`).

    Args:
        data: clean clips; must be given.
        snr_db: signal-to-noise ratios in dB, of the whole clip's power.
        noisy_tasks: labels that the noisy clips keep; all of them when None.
        seed: of the noise.
    """

    modality = "audio"

    def __init__(
        self,
        data: DataModule | None = None,
        snr_db: Sequence[float] = (20, 10, 5, 0),
        noisy_tasks: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        if data is None:  # as the command line has it for `--data Noisy` alone
            raise ValueError("Noisy puts noise behind other data's clips: name them, like --data.data SpokenWords")
        super().__init__(data.batch_size, data.num_workers, data.seed, data.batch_seconds)
        self.probed_parts = data.probed_parts
        if data.modality != "audio":
            raise ValueError(f"noise is for audio, the data is {data.modality}")
        check_at_least(-math.inf, snr_db=snr_db)
        self.data, self.snr_db = data, list(snr_db)
        self.noisy_tasks, self.noise_seed = noisy_tasks, seed

    def load(self) -> dict[str, Dataset[Batch]]:
        """The clean splits, and the test split behind each noise at each ratio; mixed when asked for."""
        train, test = self.data.dataset("train"), self.data.dataset("test")
        self.classes, self.targets = self.data.classes, self.data.targets
        tasks = self.data.tasks if self.noisy_tasks is None else list(self.noisy_tasks)
        unknown = sorted(set(tasks) - set(self.data.tasks))
        if unknown:
            raise ValueError(f"noisy_tasks {unknown} are not among the data's: {', '.join(self.data.tasks)}")
        return {
            "train": train,
            "test": test,
            **{
                f"{noise} {snr:g} dB": Mixture(test, train, noise, snr, tasks, self.noise_seed)
                for noise in get_args(Noise)
                for snr in self.snr_db
            },
        }

    def said(self) -> dict[Split, list[tuple[str, str | None]]]:
        """Of the clean test split, whose clips all others repeat."""
        return {"test": self.data.said()["test"]}


class Mixture(Dataset[Batch]):
    """Clips behind noise, the same for an index each time.

    Args:
        clips: items with waveforms.
        talkers: items that babble is made of.
        noise: `white` or `babble`.
        snr_db: signal-to-noise ratio in dB.
        tasks: labels to keep.
        seed: of the noise.
    """

    def __init__(
        self, clips: Dataset[Batch], talkers: Dataset[Batch], noise: Noise, snr_db: float, tasks: list[str], seed: int
    ) -> None:
        self.clips, self.talkers, self.noise, self.snr_db = clips, talkers, noise, snr_db
        self.tasks, self.seed = tasks, seed

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Batch:
        """The clip at an index, behind its noise."""
        item = self.clips[index]
        clip = item["inputs"]
        # The same noise at every ratio.
        generator = Generator().manual_seed(hash((self.seed, index)) % 2**63)
        noise = torch.randn(len(clip), generator=generator) if self.noise == "white" else self._babble(clip, generator)
        labels = {task: item["labels"][task] for task in self.tasks}
        return {**item, "inputs": clip + noise * noise_gain(clip, noise, self.snr_db), "labels": labels}

    def _babble(self, clip: Tensor, generator: Generator) -> Tensor:
        chosen = torch.randint(len(self.talkers), (TALKERS,), generator=generator)  # type: ignore[arg-type]
        babble = torch.zeros(len(clip))
        for talker in chosen.tolist():
            voice = self.talkers[talker]["inputs"]
            # Over and over, so that short clips fill long ones.
            position = torch.arange(len(clip)) + torch.randint(len(voice), (), generator=generator)
            babble += voice[position % len(voice)] / voice.square().mean().sqrt()
        return babble


def noise_gain(clip: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """Factor of the noise's amplitude that gives this ratio of mean powers, in dB."""
    ratio = clip.square().mean() / noise.square().mean()
    return (ratio / 10 ** (snr_db / 10)).sqrt()
