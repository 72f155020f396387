"""Generated code is loaded from a folder that nobody but the user can have written to, whole or not at all."""

import os
import stat
import warnings
from pathlib import Path

import pytest

from dxdt.lab.cli.info import info
from dxdt.ops import code_cache, cpp
from dxdt.ops.code_cache import CodeCache

TEXT, FLAGS = 'extern "C" int answer() { return 42; }\n', ("-shared", "-fPIC", "-O0")
MARKER = 'extern "C" int answer() { return 13; }\n'
PLANTED = '#include <stdio.h>\n__attribute__((constructor)) static void mine() { fclose(fopen(MARK, "w")); }\n' + MARKER
STRANGER = 12345
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The library and its key, in a folder that is used for nothing else."""
    where = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(code_cache.VARIABLE, str(where))
        cpp.library(TEXT, FLAGS)
    (path,) = where.glob("*.so")
    return path


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder that the variable names, and that is not there yet."""
    code_cache._cache.cache_clear()
    where = tmp_path / "cache"
    monkeypatch.setenv(code_cache.VARIABLE, str(where))
    yield where
    code_cache._cache.cache_clear()


@pytest.fixture
def plant(built, tmp_path):
    """Puts a library that is whole but foreign under the right name; the mark is there once it ran."""
    mark = tmp_path / "ran"

    def put(where):
        where.mkdir(exist_ok=True)
        library = cpp.build("c++", (*FLAGS, f'-DMARK="{mark}"'), PLANTED, tmp_path)
        content = library.read_bytes()
        path = where / built.name
        path.write_bytes(content + code_cache._trailer(content))
        return path, mark

    return put


def answered(match=None):
    """The answer of the library, which warns if and only if it is to."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        value = cpp.library(TEXT, FLAGS).answer()
    said = [str(w.message) for w in seen]
    assert len(said) == (match is not None) and (match is None or match in said[0]), said
    return value


def foreign_folder(path):
    os.chown(path.parent, STRANGER, STRANGER)
    path.parent.chmod(0o777)
    return f"belongs to user {STRANGER}"


def foreign_file(path):
    os.chown(path, STRANGER, STRANGER)
    return f"belongs to user {STRANGER}"


def open_to_all(path):
    path.parent.chmod(0o777)
    return "written to by others (mode 0777)"


def open_to_group(path):
    path.parent.chmod(0o770)
    return "written to by others (mode 0770)"


def open_file(path):
    path.chmod(0o666)
    return "written to by others (mode 0666)"


def open_above(path):
    path.parent.parent.chmod(0o777)
    return "every user can put another in its place"


def linked(path):
    path.rename(path.with_suffix(".away"))
    path.symlink_to(path.with_suffix(".away"))
    return "cannot be read"


SPOILT = [pytest.param(foreign_folder, marks=root), pytest.param(foreign_file, marks=root)]
SPOILT += [open_to_all, open_to_group, open_file, open_above, linked]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_planted_library_is_not_loaded(spoil, home, plant):
    path, mark = plant(home)
    said = spoil(path)
    assert answered(said) == 42 and not mark.exists()


def test_the_planted_library_would_run(home, plant):
    """What the test above asks is not empty."""
    _, mark = plant(home)
    assert cpp.library(TEXT, FLAGS).answer() == 13 and mark.exists()


DAMAGE = {
    "empty": lambda x: b"",
    "cut off": lambda x: x[: len(x) // 2],
    "last byte": lambda x: x[:-1],
    "one bit": lambda x: x[:5000] + bytes([x[5000] ^ 1]) + x[5001:],
    "appended": lambda x: x + b"\0",
    "no digest": lambda x: x[:-40],
    "a text": lambda x: b"no library at all" * 500,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_library_is_built_again(kind, home, built):
    home.mkdir()
    whole = built.read_bytes()
    path = home / built.name
    path.write_bytes(DAMAGE[kind](whole))
    assert answered() == 42 and path.read_bytes()[-40:] != DAMAGE[kind](whole)[-40:] or kind == "one bit"
    assert CodeCache(home).get(built.stem) == path


def test_a_library_of_another_system_is_built_again(home, built):
    home.mkdir()
    content = b"\x7fELF of another processor" * 100
    (home / built.name).write_bytes(content + code_cache._trailer(content))
    assert answered() == 42


def test_a_variable_that_names_a_file(home):
    home.write_text("")
    assert answered("is no folder") == 42 and home.read_text() == ""


def test_a_folder_that_cannot_be_made(home, monkeypatch):
    (home.parent / "file").write_text("")
    monkeypatch.setenv(code_cache.VARIABLE, str(home.parent / "file" / "below"))
    assert answered("cannot be") == 42


def test_the_folder_is_private_and_holds_only_libraries(home):
    assert answered() == 42
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert [p.suffix for p in home.iterdir()] == [".so"]


def test_where_it_is(monkeypatch):
    for name in (code_cache.VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert code_cache.folder() == Path("/home/someone/.cache/dxdt")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert code_cache.folder() == Path("/home/someone/.cache/dxdt")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/someone")
    assert code_cache.folder() == Path("/var/someone/dxdt")
    monkeypatch.setenv(code_cache.VARIABLE, "~/mine")
    assert code_cache.folder() == Path("/home/someone/mine")


def test_what_was_used_least_recently_goes(tmp_path):
    kept = CodeCache(tmp_path, bound=10_000)
    source = tmp_path / "source"
    source.write_bytes(b"x" * 1000)
    for i in range(9):
        os.utime(kept.put(f"k{i}", source), (i, i))
    assert kept.held().files == 9
    assert kept.get("k0") is not None
    kept.put("new", source)
    assert kept.held().bytes <= 9_000 and kept.get("k0") and kept.get("new") and not kept.get("k1")


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    kept = CodeCache(tmp_path / "kept")
    kept.folder.mkdir()
    (tmp_path / "source").write_bytes(b"x")

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(code_cache.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        kept.put("k", tmp_path / "source")
    assert not list(kept.folder.iterdir())


def test_what_builds_left_behind_goes(tmp_path):
    kept = CodeCache(tmp_path)
    for name in ("build-old", "build-new"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / "build-old", (0, 0))
    kept.shrink(tmp_path / "any")
    assert [p.name for p in tmp_path.iterdir()] == ["build-new"]


def test_torch_is_pointed_here_unless_it_was_told(home, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert code_cache.point_torch_here() is None
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(home / "torch")
    told = home / "told"
    told.mkdir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(told))
    assert code_cache.point_torch_here() is None
    told.chmod(0o777)
    assert "written to by others" in code_cache.point_torch_here()


def test_info_says_where_and_how_much(home, capsys):
    answered()
    info()
    said = "".join(capsys.readouterr().out.split())
    assert str(home) in said and "1libraries" in said and code_cache.VARIABLE in said
