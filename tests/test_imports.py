"""Every module of the four packages can be imported, those too that no other test happens to need."""

import importlib
import importlib.util
import pkgutil

import pytest

import encoders
import export
import quant
import ssql

MODULES = sorted(
    module.name
    for package in (quant, encoders, export, ssql)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
)
# Comes with torch only where a GPU can run it.
NEEDED = {"quant.grid.triton_kernels": "triton"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_imported(name):
    if name in NEEDED and importlib.util.find_spec(NEEDED[name]) is None:
        pytest.skip(f"{NEEDED[name]} is not installed")
    importlib.import_module(name)


def test_none_is_left_out():
    assert {"quant.grid.affine", "encoders.storage.files", "export.check.verify", "ssql.commands.demo"} <= set(MODULES)
    assert len(MODULES) > 150
