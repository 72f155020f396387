"""Seconds to the first answer: empty cache, another process with the cache on disk, second call.

Prints and asserts nothing about time: pytest -m slow -s tests/compiled/test_compile_times.py
"""

import json
import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import json, time, torch, dxdt

    torch.set_num_threads(1)
    torch.manual_seed(0)
    linear = torch.nn.Linear
    net = torch.nn.Sequential(linear(4, 64), torch.nn.Tanh(), linear(64, 64), torch.nn.Tanh(), linear(64, 4))

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, y):
            return self.net(y)

    field, y0 = Field(), torch.randn(64, 4)

    def seconds(f):
        start = time.perf_counter()
        f()
        return time.perf_counter() - start

    def forward():
        with torch.no_grad():
            dxdt.solve(dxdt.ODE(field), y0, (0.0, 5.0), compile=True)

    def training():
        dxdt.solve(dxdt.ODE(field), y0, (0.0, 5.0), compile=True).ys.sum().backward()

    out = {}
    for name, f in (("forward", forward), ("forward and backward", training)):
        out[name], out["second " + name] = seconds(f), seconds(f)
    print(json.dumps(out))
"""


@pytest.mark.slow
def test_compile_times(tmp_path):
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "DXDT_CACHE": str(tmp_path / "code"),
    }
    for process in ("empty cache", "another process"):
        done = subprocess.run(
            [sys.executable, "-W", "error::RuntimeWarning", "-c", textwrap.dedent(PROGRAM)],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        times = json.loads(done.stdout.splitlines()[-1])
        print(process, {name: f"{seconds:.3f} s" for name, seconds in times.items()})
        assert set(times) == {p + n for p in ("", "second ") for n in ("forward", "forward and backward")}
