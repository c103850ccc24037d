"""The examples in docstrings run, and every public function has one."""

import doctest
import importlib
import inspect

import pytest

import encoders
import export
import quant

# Needs published weights: tests/encoders/test_published.py has an example.
WITHOUT = {"import_encoder"}
PUBLIC = [
    (package.__name__, name)
    for package in (quant, encoders, export)
    for name in sorted({*package.__all__, *(name for name, it in vars(package).items() if ">>>" in (it.__doc__ or ""))})
    if inspect.isfunction(inspect.unwrap(getattr(package, name))) or name == "OnnxEncoder"
]


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, name in PUBLIC if name not in WITHOUT])
def test_the_example_runs(package, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = getattr(importlib.import_module(package), name)
    found = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    assert sum(len(test.examples) for test in found) > 1, f"{package}.{name} has no example"
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    for test in found:
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
