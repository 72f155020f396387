import pytest

from dxdt.ops.optional import require


def test_an_installed_package_is_returned():
    assert require("collections.abc", "lab").__name__ == "collections.abc"


@pytest.mark.parametrize("name", ["no_such_package_anywhere", "no_such_package_anywhere.part"])
def test_a_missing_package_names_its_extra(name: str):
    with pytest.raises(ImportError, match=r"pip install 'dxdt\[symbolic\]'"):
        require(name, "symbolic")


def test_a_package_broken_inside_keeps_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_package_of_test.py").write_text("import missing_dependency_of_test\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="missing_dependency_of_test"):
        require("broken_package_of_test", "lab")
