"""`ssql doctor`: what is there, what does not load, and what mends it."""

import re

from ssql.commands import doctor


def test_all_is_well_here(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "NEEDED", ("numpy", "soundfile"))  # torch takes seconds to load
    monkeypatch.setattr(doctor, "OPTIONAL", ("no_such",))
    assert doctor.doctor([]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^  numpy +\d+\.\d+", said, re.MULTILINE)
    assert re.search(r"^  no-such +is missing\n +to have it: ", said, re.MULTILINE)
    assert "no faults found" in said


def test_what_is_missing_or_does_not_load_is_a_fault_with_its_mend(monkeypatch, capsys, tmp_path):
    (tmp_path / "torchaudio.py").write_text("raise OSError('libtorchaudio.so: undefined symbol')\n")
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "NEEDED", ("torchaudio", "torch", "no_such", "numpy"))
    monkeypatch.setattr(doctor, "OPTIONAL", ())
    monkeypatch.setattr(doctor, "LOCK", "no.lock")  # installed from an index, not in a checkout
    assert doctor.doctor([]) == 1
    said = capsys.readouterr().out
    assert re.search(r"^! torchaudio .*does not load: OSError: libtorchaudio\.so: undefined symbol", said, re.MULTILINE)
    assert re.search(r"^! torch .*does not load: Python ended with code -4 while it loaded", said, re.MULTILINE)
    assert re.search(r"^! no-such +is missing\n +mend: pip install --force-reinstall 'no-such'", said, re.MULTILINE)
    assert re.search(r"^  numpy ", said, re.MULTILINE)
    assert "pip install --force-reinstall 'torch' 'torchvision' 'torchaudio'" in said
    assert "3 faults found" in said


def test_versions_are_compared_with_the_lock(monkeypatch, tmp_path):
    lock = "numpy==0.1 ; python_version >= '3' \\\n    --hash=sha256:0\nabsent==1 \\\n"
    lock += "soundfile==0.1 ; sys_platform == 'win32' \\\n"
    (tmp_path / doctor.LOCK).write_text(lock)
    monkeypatch.setattr(doctor, "HOME", tmp_path)
    (finding,) = doctor._against_lock()
    assert re.fullmatch(r"1 differ from requirements\.lock: numpy \S+ \(locked ==0\.1\)", finding.how)
    assert finding.mend == "make --always-make install"


def test_options_are_refused_and_help_is_given(capsys):
    assert doctor.doctor(["--help"]) == 0
    assert doctor.doctor(["--fix"]) == 2
    assert "usage: ssql doctor" in capsys.readouterr().out
