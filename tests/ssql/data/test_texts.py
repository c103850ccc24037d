import numpy as np
import pytest
import soundfile

from ssql.data import AudioFolder, Spelling, SpokenWords

TONE = 0.1 * np.sin(np.arange(16_000) / 5).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    for name in ("7_ann", "7_bob", "2_ann"):
        soundfile.write(tmp_path / f"{name}.wav", TONE, 16_000)
    soundfile.write(tmp_path / "2_long.wav", np.tile(TONE, 3), 16_000)
    return tmp_path


def texts_of(data, split="train"):
    return [text for batch in data.evaluation_dataloader(split) for text in batch["texts"]]


def test_class_names_say_what_is_spoken(folder):
    spelling = Spelling("digit", {"7": "seven", "2": "two"})
    data = AudioFolder(str(folder), labels=r"(?P<digit>\d)_", texts=spelling, test_pattern="ann", max_seconds=4)
    assert texts_of(data) == ["two", "seven"]
    assert texts_of(data, "test") == ["two", "seven"]
    assert data.classes == {"digit": ["2", "7"]}
    plain = AudioFolder(str(folder), labels=r"(?P<digit>\d)_", texts=Spelling("digit"), max_seconds=4)
    assert texts_of(plain) == ["2", "2", "7", "7"]


def test_a_transcript_file(folder):
    transcripts = folder / "transcripts.tsv"
    transcripts.write_text('2_ann.wav\tit\'s "two"\n2_long.wav\ttoo long\n7_ann.wav\tseven\n7_bob.wav\tseven again\n')
    data = AudioFolder(str(folder), labels=None, texts=str(transcripts), max_seconds=2)
    # A text cannot be cut where its file would be.
    assert texts_of(data) == ['it\'s "two"', "seven", "seven again"]
    assert len(AudioFolder(str(folder), labels=None, max_seconds=2).dataset("train")) == 5


def test_lines_of_recordings_that_are_not_there_are_counted_and_empty_ones_are_none(folder, caplog):
    names = ("2_ann", "2_long", "7_ann", "7_bob")
    lines = [f"{name}.wav\ttwo\n" for name in names] + ["\n", "gone.wav\ttwo\n", "\n"]
    (folder / "t.tsv").write_text("".join(lines), encoding="utf-8")
    with caplog.at_level("INFO"):
        AudioFolder(str(folder), labels=None, texts=str(folder / "t.tsv")).setup()
    assert "1 of 5 lines of" in caplog.text and "name no recording that is there, such as gone.wav" in caplog.text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("2_ann.wav\ttwo\n", r"has no line for \d of \d audio files, the first of them 2_long.wav"),
        ("2_ann.wav two\n", r"line 1 is not path<TAB>text"),
        ("2_ann.wav\ttwo\n2_ann.wav\ttwo\n", r"line 2: 2_ann.wav has a text already"),
        ("2_ann.wav\t\n", r"line 1: the text of 2_ann.wav is empty"),
    ],
)
def test_wrong_transcripts(folder, lines, message):
    (folder / "t.tsv").write_text(lines)
    with pytest.raises(ValueError, match=message):
        AudioFolder(str(folder), labels=None, texts=str(folder / "t.tsv")).setup()


def test_missing_transcripts_and_labels(folder):
    with pytest.raises(FileNotFoundError, match=r"transcript file .*none.tsv does not exist"):
        AudioFolder(str(folder), labels=None, texts=str(folder / "none.tsv")).setup()
    with pytest.raises(ValueError, match="texts come from task 'word', but the labels are: digit"):
        AudioFolder(str(folder), labels=r"(?P<digit>\d)_", texts=Spelling("word")).setup()


def test_spoken_words_say_what_they_are():
    data = SpokenWords(train_size=12, test_size=2, languages=["en-us"])
    assert texts_of(data)[:3] == ["zero", "one", "two"]


def test_without_texts_a_batch_has_none(folder):
    assert "texts" not in next(iter(AudioFolder(str(folder)).evaluation_dataloader("train")))
