import tomllib
from pathlib import Path

import pytest

from dxdt.ops.optional import PACKAGES, missing, require


def test_an_installed_package_is_returned():
    assert require("collections.abc", "lab").__name__ == "collections.abc"


@pytest.mark.parametrize("name", ["no_such_package_anywhere", "no_such_package_anywhere.part"])
def test_a_missing_package_names_its_extra(name: str):
    with pytest.raises(ImportError, match=r"pip install 'dxdt\[mcmc\]'"):
        require(name, "mcmc")


def test_a_package_broken_inside_keeps_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_package_of_test.py").write_text("import missing_dependency_of_test\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="missing_dependency_of_test"):
        require("broken_package_of_test", "lab")


@pytest.mark.parametrize(
    ("module", "package", "remedy"),
    [
        ("sklearn.datasets", "scikit-learn", "'dxdt[lab]'"),
        ("PIL", "pillow", "'dxdt[lab]'"),
        ("yaml", "pyyaml", "'dxdt[lab]'"),
        ("huggingface_hub", "huggingface-hub", "'dxdt[interop]'"),
        ("scipy.integrate", "scipy", "scipy"),
    ],
)
def test_packages_have_the_names_of_pip(module, package, remedy):
    assert missing(module) == f"{package} is needed here and not installed: run pip install {remedy}."


def test_the_extras_are_those_of_the_project():
    """Each package that is named belongs to its extra; no extra stands for what does not exist."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = {name: " ".join(wanted) for name, wanted in project["optional-dependencies"].items()}
    assert set(extras) == {*PACKAGES, "docs", "dev"}
    for extra, packages in PACKAGES.items():
        for package in packages.values():
            assert f"{package}" in extras[extra].replace("[", " "), package
