"""Imports flow one way: tune -> ray_jobs -> spcl; ray stays out of spcl."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def within(folder: str, *forbidden: str) -> list[tuple[str, str]]:
    return [
        (str(path.relative_to(ROOT)), name)
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in imports(path)
        if any(name == f or name.startswith(f + ".") for f in forbidden)
    ]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("spcl", ["ray", "ray_jobs", "tune"]),
        ("ray_jobs", ["tune"]),
        ("spcl/losses", ["spcl.methods", "spcl.memory", "spcl.models", "spcl.config"]),
        ("spcl/memory", ["spcl.methods", "spcl.models", "spcl.config"]),
        ("spcl/models", ["spcl.methods", "spcl.config", "spcl.data.loader"]),
        ("spcl/methods", ["spcl.trainer", "spcl.recipe", "spcl.data.loader", "spcl.data.shards"]),
        ("spcl/data/datasets", ["torch", "spcl.methods"]),
        ("spcl/results", ["torch", "spcl.methods", "spcl.trainer", "spcl.models"]),
    ],
)
def test_no_arrow_points_back(folder, forbidden):
    assert within(folder, *forbidden) == []


def test_no_method_imports_another():
    for path in (ROOT / "spcl/methods").glob("*.py"):
        if path.stem not in ("__init__", "base"):
            others = {n for n in imports(path) if n.startswith("spcl.methods.")}
            assert {n for n in others if not n.startswith("spcl.methods.base")} == set(), path


def test_no_script_is_named_like_a_module_it_would_shadow():
    """`python ray_jobs/train.py` puts ray_jobs/ first on sys.path."""
    for folder in ("ray_jobs", "tune"):
        for path in (ROOT / folder).glob("*.py"):
            assert path.stem not in sys.stdlib_module_names | {"ray", "torch", "optuna"}


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "ray" or name.startswith("ray."):
            raise ImportError("ray is blocked")
sys.meta_path.insert(0, Block())
from spcl import cli
from spcl.train import main
code = cli.guarded(main, sys.argv[1:])
assert "ray" not in sys.modules
sys.exit(code)
"""


def test_spcl_trains_with_ray_blocked(mini_data, tmp_path):
    from conftest import MINI

    command = [sys.executable, "-c", BLOCKED, "--data", str(mini_data), "--storage", str(tmp_path)]
    done = subprocess.run(
        [*command, "--method", "source_only", *MINI], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "mIoU-tail" in done.stdout
