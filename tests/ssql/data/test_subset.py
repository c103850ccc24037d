import pytest
import torch

from ssql.data import Digits, Noisy, SpokenWords, Subset


def test_a_part_of_both_splits_the_same_for_a_seed():
    words = SpokenWords(train_size=80, test_size=40, batch_size=8)
    data = Subset(words, train_size=16, test_size=100, seed=1)
    assert (len(data.dataset("train")), len(data.dataset("test"))) == (16, 40)
    assert data.tasks == words.tasks
    chosen = [item["index"] for item in data.dataset("train")]
    assert chosen == sorted(set(chosen))
    assert chosen == [item["index"] for item in Subset(words, train_size=16, seed=1).dataset("train")]
    assert chosen != [item["index"] for item in Subset(words, train_size=16, seed=2).dataset("train")]
    first = words.dataset("train")[chosen[0]]
    assert torch.equal(data.dataset("train")[0]["inputs"], first["inputs"])
    batch = next(iter(data.evaluation_dataloader("train")))
    assert batch["indices"].tolist() == chosen[:8]


def test_images_stay_images():
    assert Subset(Digits(), 10, 10).modality == "image"


def test_a_part_of_nothing():
    with pytest.raises(ValueError, match=r"Subset takes its items from other data: name them, like --data\.data"):
        Subset()
    with pytest.raises(ValueError, match=r"Noisy puts noise behind other data's clips: name them, like --data\.data"):
        Noisy()
