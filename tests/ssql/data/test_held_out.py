import pytest
import torch

from ssql.data import DataModule, Digits, Subset
from ssql.data.batch import LabelledTensors
from ssql.data.held_out import HeldOut, in_turns


class Clips(DataModule):
    modality = "audio"

    def load(self):
        self.classes = {"word": ["a", "b"]}
        clips = [torch.full((400 + index,), float(index)) for index in range(20)]
        labels = {"word": [int(index >= 14) for index in range(20)]}
        texts = [f"text {index}" for index in range(20)]
        return {name: LabelledTensors(clips, labels, texts) for name in ("train", "test")}


def names(data, split):
    return [text for batch in data.evaluation_dataloader(split) for text in batch["texts"]]


def test_validation_comes_out_of_training_and_never_out_of_the_test():
    data = HeldOut(Clips(batch_size=4), share=0.25, seed=3)
    train, validation = names(data, "train"), names(data, "validation")
    assert (len(train), len(validation)) == (15, 5)
    assert set(train) | set(validation) == {f"text {index}" for index in range(20)}
    assert names(data, "test") == [f"text {index}" for index in range(20)]
    again = HeldOut(Clips(batch_size=4), share=0.25, seed=3)
    assert (names(again, "train"), names(again, "validation")) == (train, validation)
    assert names(HeldOut(Clips(batch_size=4), share=0.25, seed=4), "validation") != validation
    assert (data.modality, data.classes) == ("audio", {"word": ["a", "b"]})


def test_few_labels_are_the_same_number_of_each_class():
    data = HeldOut(Clips(batch_size=4), share=0.5, limit=8, balance="word")
    for split in ("train", "validation"):
        labels = [item["labels"]["word"] for item in map(data.dataset(split).__getitem__, range(4))]
        assert sorted(labels) == [0, 0, 1, 1]


def test_inputs_follow_their_labels():
    data = HeldOut(Clips(batch_size=4), share=0.25)
    for item in map(data.dataset("train").__getitem__, range(15)):
        assert item["texts"] == f"text {int(item['inputs'][0])}"
        assert len(item["inputs"]) == 400 + int(item["inputs"][0])


def test_images():
    data = HeldOut(Digits(batch_size=16), share=0.1, limit=100, balance="class")
    assert (len(data.dataset("train")), len(data.dataset("validation"))) == (90, 10)
    assert next(iter(data.val_dataloader()))["labels"]["class"].tolist() != list(range(10))
    assert sorted(next(iter(data.val_dataloader()))["labels"]["class"].tolist()) == list(range(10))


def test_classes_take_turns():
    assert in_turns([9, 8, 7, 6, 5], [0, 0, 1, 0, 1]) == [9, 7, 8, 5, 6]


def test_a_split_that_would_be_empty():
    with pytest.raises(ValueError, match="must be above 0 and below 1, got 1.0"):
        HeldOut(Clips(), share=1.0)
    with pytest.raises(ValueError, match="2 labelled training items leave none for training or for validation"):
        HeldOut(Clips(), share=0.1, limit=2).setup()


def test_a_part_of_a_part_can_be_set_aside():
    whole = Subset(Digits(), 40, 10)
    data = HeldOut(whole, share=0.25, balance="class")
    assert [len(data.dataset(split)) for split in ("train", "validation", "test")] == [30, 10, 10]
    items = [*data.dataset("train").inputs, *data.dataset("validation").inputs]
    chosen = [item["inputs"] for item in whole.dataset("train")]
    assert sorted(float(item.sum()) for item in items) == sorted(float(item.sum()) for item in chosen)


def test_items_made_on_the_fly_cannot_be_set_aside():
    class Rendered(Digits):
        def load(self):
            return {"train": [1, 2, 3], "test": [4]}

    with pytest.raises(ValueError, match="Rendered makes its training items on the fly: .* give the data inside it"):
        HeldOut(Rendered()).setup()
