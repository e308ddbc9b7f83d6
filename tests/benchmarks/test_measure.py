import subprocess
import sys

import pytest
import torch

from benchmarks.measure import alone, compare, step


def test_a_script_run_alone_returns_its_numbers_and_its_crash_is_seen(tmp_path, monkeypatch, capfd):
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint(*[1 / int(x) for x in sys.argv[1:]])")
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert alone("2", "4") == [0.5, 0.25]
    with pytest.raises(subprocess.CalledProcessError):
        alone("0")
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_ways_to_different_losses_are_not_compared():
    x = torch.ones(3, requires_grad=True)
    ours, other = (lambda k=k: step(lambda: (k * x).sum(), [x]) for k in (1, 1.01))
    loss, ratio = compare(ours, ours, rounds=1)
    assert loss == 3 and ratio > 0 and x.grad.tolist() == [1, 1, 1]
    with pytest.raises(AssertionError, match="not close"):
        compare(ours, other, rounds=1)
