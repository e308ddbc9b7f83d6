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


#: spcl from the ground up: a module imports from its own room and from lower ones.
ROOMS: tuple[str | set[str], ...] = (
    {"errors", "precision", "randomness", "distributed", "settings"},
    "store",
    {"cli"},
    "data",
    "losses",
    "models",
    "memory",
    "scoring",
    "methods",
    "extras",
    "configuration",
    "inference",
    "engine",
    "boards",
    {"launch"},
    {"plan", "dry_run", "train", "runs"},
)


def floor(module: str) -> int:
    """Number of the room that a module of spcl is in."""
    name = module.split(".")[1]
    rooms = [{room} if isinstance(room, str) else room for room in ROOMS]
    (found,) = (number for number, room in enumerate(rooms) if name in room)
    return found


def graph() -> dict[str, set[str]]:
    """Our modules, each with those that it imports."""
    names = {}
    for top in OURS:
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names[".".join(p for p in parts if p != "__init__")] = path
    return {name: (imports(path) & names.keys()) - {name} for name, path in names.items()}


def test_rooms_import_from_lower_rooms_alone():
    modules = {m: found for m, found in graph().items() if m.startswith("spcl.")}
    up = {
        (module, other)
        for module, found in modules.items()
        for other in found
        if other.startswith("spcl.") and floor(other) > floor(module)
    }
    assert up == set()
    assert {floor(module) for module in modules} == set(range(len(ROOMS)))


def test_no_imports_go_round_in_a_circle():
    """Packages apart, whose __init__ lists what is in them."""
    waiting = {
        name: {other for other in found if not name.startswith(f"{other}.")}
        for name, found in graph().items()
    }
    while done := {name for name, found in waiting.items() if not found & waiting.keys()}:
        waiting = {name: found for name, found in waiting.items() if name not in done}
    assert sorted(waiting) == []


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("spcl", ["ray", "ray_jobs", "tune"]),
        ("ray_jobs", ["tune"]),
        ("spcl/data", ["spcl.engine", "spcl.methods", "spcl.scoring"]),
        ("spcl/losses", ["spcl.data.loader", "spcl.data.shards"]),
        ("spcl/memory", ["spcl.models"]),
        ("spcl/models", ["spcl.data.loader"]),
        ("spcl/methods", ["spcl.data.loader", "spcl.data.shards"]),
        ("spcl/data/datasets", ["torch"]),
        ("spcl/boards", ["torch", "spcl.methods", "spcl.engine", "spcl.models"]),
        ("spcl/scoring", ["torch"]),
        # What searches and sweeps share is in ray_jobs or spcl; the leaderboard knows neither.
        ("tune/searching", ["tune.sweep", "tune.sweeping", "tune.search"]),
        ("tune/sweeping", ["tune.search", "tune.searching", "tune.sweep"]),
    ],
)
def test_no_arrow_points_back(folder, forbidden):
    assert (ROOT / folder).is_dir()
    assert within(folder, *forbidden) == []


def test_each_command_of_tune_has_its_own_rooms():
    rooms = {"search": "tune.searching", "sweep": "tune.sweeping", "leaderboard": None}
    for name, room in rooms.items():
        found = {n for n in imports(ROOT / "tune" / f"{name}.py") if n.startswith("tune.")}
        assert {".".join(n.split(".")[:2]) for n in found} <= {room}


SHARED = {
    "base",
    "stage",
    "taught",
    "teacher",
    "optimization",
    "passes",
    "parts",
}  # what is of no single method


def test_no_method_imports_another():
    for path in (ROOT / "spcl/methods").glob("*.py"):
        if path.stem not in ("__init__", *SHARED):
            others = {n.split(".")[2] for n in imports(path) if n.startswith("spcl.methods.")}
            assert others <= SHARED, path


def at_the_top(path: Path) -> set[str]:
    """Full names of the modules that are imported as soon as a file is."""
    names = set()
    waiting = list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)
    return names


def loaded_first(entry: Path) -> set[str]:
    """Top-level packages, not ours or Python's, that are loaded before an entry point's `main`."""
    foreign, seen, waiting = set(), set(), [entry]
    while waiting:
        path = waiting.pop()
        for name in at_the_top(path):
            parts = name.split(".")
            if parts[0] not in OURS:
                foreign |= {parts[0]} - sys.stdlib_module_names
                continue
            for end in range(1, len(parts) + 1):
                place = ROOT.joinpath(*parts[:end])
                for file in (place.with_suffix(".py"), place / "__init__.py"):
                    if file.is_file() and file not in seen:
                        seen.add(file)
                        waiting.append(file)
    return foreign


OURS = ("spcl", "ray_jobs", "tune")
ENTRIES = [
    str(path.relative_to(ROOT))
    for path in sorted(file for folder in OURS for file in (ROOT / folder).rglob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
] + ["benchmarks/streets.py"]  # the others measure what they import
#: What else than the standard library may be loaded before `main` answers.
LOADED = {"spcl/configuration/table.py": {"yaml"}}  # a library first


@pytest.mark.parametrize("entry", ENTRIES)
def test_entry_points_import_the_rest_within_main(entry):
    """So that --help and typing errors are answered at once, and Ctrl-C while it loads, too."""
    assert loaded_first(ROOT / entry) == LOADED.get(entry, set())


def test_there_are_entry_points_and_the_walk_sees_what_they_load():
    assert len(ENTRIES) > 12 and "tune/search.py" in ENTRIES
    assert {"torch", "torchvision", "yaml"} <= loaded_first(ROOT / "spcl/engine/recipe.py")
    assert loaded_first(ROOT / "tune/searching/study.py") >= {"optuna", "scipy"}


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


#: What puts bytes on a disk, by the last name of what is called.
WRITERS = {"write_text", "write_bytes", "mkdir", "makedirs", "touch", "SummaryWriter", "OSFile"}
WRITERS |= {"save", "savez", "savez_compressed", "new_file", "symlink_to", "truncate", "mkstemp"}
OF = {"shutil": {"copy", "copy2", "copyfile", "copytree", "move"}, "pq": {"write_table"}}
OPENERS = {"open", "fdopen"}
GUARDS = {"writing", "opened"}  # of spcl.store.atomic
IN_MEMORY = {"file", "buffer", "sink"}  # names of what `opened` gives, and of buffers


def unguarded_writers(source: str) -> list[tuple[int, str]]:
    """Calls that write, by line, outside of `with atomic.writing(...)` or `try ... except OSError`.

    A call on `atomic`, or one that is given an open file or a buffer first, needs no guard.
    """
    found: list[tuple[int, str]] = []

    def name(node: ast.expr) -> str:
        return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")

    def owner(node: ast.expr) -> str:
        return name(node.value) if isinstance(node, ast.Attribute) else ""

    def writes(call: ast.Call) -> bool:
        called = name(call.func)
        if called in OPENERS and owner(call.func) in ("", "os", "io"):
            words = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
            modes = [w.value for w in words if isinstance(w, ast.Constant)]
            return any(isinstance(m, str) and set(m) & set("wax+") for m in modes)
        first = name(call.args[0]) if call.args else ""
        if called not in WRITERS | OF.get(owner(call.func), set()):
            return False
        into_memory = {first, *(name(arg) for arg in call.args[1:2])} & IN_MEMORY
        return not into_memory and owner(call.func) not in ("atomic", "checkpoints")

    def visit(node: ast.AST, guarded: bool) -> None:
        if isinstance(node, ast.With):
            calls = [i.context_expr for i in node.items if isinstance(i.context_expr, ast.Call)]
            guarded = guarded or any(name(call.func) in GUARDS for call in calls)
        if isinstance(node, ast.Try):
            caught = {name(n) for h in node.handlers for n in ast.walk(h.type or h)}
            guarded = guarded or "OSError" in caught
        if isinstance(node, ast.Call) and not guarded and writes(node):
            found.append((node.lineno, name(node.func)))
        for child in ast.iter_child_nodes(node):
            visit(child, guarded)

    visit(ast.parse(source), False)
    return found


@pytest.mark.parametrize("folder", ["spcl", "ray_jobs", "tune"])
def test_whatever_writes_tells_of_a_full_disk_alike(folder):
    left = {
        str(path.relative_to(ROOT)): calls
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "atomic.py" and (calls := unguarded_writers(path.read_text()))
    }
    assert left == {}


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')",
        "open(path, mode='ab+')",
        "path.write_text('')",
        "torch.save(state, path / 'x.pt')",
        "np.save(path, array)",
        "Image.fromarray(a).save(root / 'x.png')",
        "pq.write_table(table, path)",
        "shutil.copy(a, b)",
        "folder.mkdir()",
        "SummaryWriter(path)",
    ],
)
def test_a_writer_of_its_own_would_be_seen(line):
    assert unguarded_writers(line)
    assert not unguarded_writers(f"with atomic.writing(path):\n    {line}")
    assert not unguarded_writers("torch.save(state, file); open(path); open(path, 'rb')")
