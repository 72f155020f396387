"""What takes over a second to compile says so once, with its name and where its code is kept."""

import time

from dxdt.compiler import slow_build
from dxdt.compiler.slow_build import told_if_slow, working_on
from dxdt.ops.code_cache import folder


def test_a_slow_build_says_what_is_built_and_where_it_is_kept_once(monkeypatch, capsys):
    monkeypatch.setattr(slow_build, "_SECONDS", 0.01)
    for _ in range(2):
        with working_on("the solve of f"), told_if_slow():
            time.sleep(0.2)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "compiling the solve of f" in told and str(folder()) in told


def test_a_quick_build_and_one_without_a_name_say_nothing(capsys):
    with working_on("the solve of g"), told_if_slow():
        pass
    with told_if_slow():
        pass
    assert capsys.readouterr().err == ""
