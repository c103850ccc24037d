import pytest

import encoders


def test_encoders_are_created_by_the_names_they_are_saved_under():
    names = encoders.list_encoders()
    assert names == sorted(names)
    assert {"speech_transformer", "conformer", "vision"} <= set(names)
    assert encoders.list_encoders("wav*") == ["wav2vec2", "wavlm"]
    encoder = encoders.create_encoder("speech_transformer", width=16, depth=1, heads=2)
    assert isinstance(encoder, encoders.SpeechTransformer)
    assert (encoder.name, encoder.arguments["width"], encoder.training) == ("speech_transformer", 16, True)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="unknown encoder 'conformers': did you mean conformer?"):
        encoders.create_encoder("conformers")
    with pytest.raises(ValueError, match=r"unknown encoder 'x': known are conformer, .*vision"):
        encoders.create_encoder("x")
    with pytest.raises(TypeError, match="size"):
        encoders.create_encoder("conformer", size=3)
