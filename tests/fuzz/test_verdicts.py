"""What the fuzzer calls lost where a run that overwrites another was interrupted."""

import importlib
from pathlib import Path

import pytest

from encoders import SpeechTransformer, save_encoder


@pytest.fixture
def fuzz(monkeypatch):
    """Modules of the fuzzer, which are scripts beside each other."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return {name: importlib.import_module(name) for name in ("verdicts", "cases", "valid", "process")}


@pytest.fixture
def lost(fuzz, tmp_path):
    """What is lost when something happens to a finished run, after which the command ends with Ctrl-C."""

    def save(seed):
        save_encoder(
            SpeechTransformer(width=8 * seed, depth=1, heads=2), tmp_path / "runs/finetune/model", overwrite=True
        )

    def run(happens, overwrite=True):
        save(1)
        for name in ("runs/finetune/results.json", "runs/finetune/model/kept-by-hand.txt", "notes.json"):
            (tmp_path / name).write_text("[]", encoding="utf-8")
        before = fuzz["verdicts"].snapshot(tmp_path)
        happens(tmp_path / "runs/finetune", save)
        command = next(it for it in fuzz["valid"].COMMANDS if it.name == "finetune")
        words = ["finetune", "--output", "runs/finetune", *(["--overwrite", "true"] if overwrite else [])]
        around = fuzz["process"].Surroundings()
        case = fuzz["cases"].Case(command, words, "Ctrl-C", None, "runs/finetune", overwrite, around, "surroundings")
        outcome = fuzz["process"].Outcome(130, None, False, "ssql finetune: interrupted", 0.5)
        after = fuzz["verdicts"].snapshot(tmp_path)
        found = fuzz["verdicts"].judge(case, outcome, before, after, tmp_path)
        return [fault.detail for fault in found if fault.kind == "lost"]

    return run


def replaced(run, save):
    """A new model, and no results yet, as `ssql finetune` leaves it."""
    kept = (run / "model/kept-by-hand.txt").read_bytes()
    (run / "model/kept-by-hand.txt").unlink()
    save(2)
    (run / "model/kept-by-hand.txt").write_bytes(kept)
    (run / "results.json").unlink()


def test_results_go_with_the_model_that_is_replaced(lost):
    assert lost(replaced) == []


def test_without_overwrite_they_are_lost(lost):
    assert lost(replaced, overwrite=False) == [
        "1 gone, 2 changed: runs/finetune/model/config.json, runs/finetune/model/model.safetensors, "
        "runs/finetune/results.json"
    ]


def also(what):
    """As replaced, and one thing more."""

    def happens(run, save):
        replaced(run, save)
        what(run)

    return happens


@pytest.mark.parametrize(
    ("happens", "named"),
    [
        (lambda run, save: (run / "results.json").unlink(), "results.json"),  # of the model that is still there
        (also(lambda run: (run / "model/config.json").unlink()), "model/config.json"),
        (also(lambda run: (run / "model/model.safetensors").write_bytes(b"half")), "model/model.safetensors"),
        (also(lambda run: (run / "model/kept-by-hand.txt").write_text("other")), "model/kept-by-hand.txt"),
        (also(lambda run: (run.parents[1] / "notes.json").unlink()), "notes.json"),
    ],
)
def test_the_rest_is_lost_all_the_same(lost, happens, named):
    (found,) = lost(happens)
    assert named in found
