"""What may import what, read from the source: arrows run one way, and nothing that runs code is on a load path."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("models", "orchestration", "search_spaces", "clusters")
MAY_IMPORT = {
    "models": {"models"},
    "search_spaces": {"search_spaces"},
    "clusters": {"clusters"},
    "orchestration": {"orchestration", "models", "search_spaces", "clusters"},
}
# Whole libraries that a paper's mathematics and plain data have no business with.
MACHINERY = {"ray", "mlflow", "optuna", "fastapi", "starlette", "uvicorn", "click", "httpx2", "filelock", "tqdm"}
RUNS_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LONGEST = 500


@dataclass(frozen=True)
class Source:
    """One module of a package."""

    path: Path

    @property
    def package(self) -> str:
        return self.path.relative_to(REPOSITORY).parts[0]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"), str(self.path))

    def __str__(self) -> str:
        return str(self.path.relative_to(REPOSITORY))


SOURCES = [Source(path) for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]


def imports(tree: ast.AST) -> Iterator[str]:
    """The first word of every import, wherever it stands; "." for a relative one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and dotted(node.func).endswith(("import_module", "__import__")) and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value.partition(".")[0]


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression that is such a name, else its last part."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe_loads(tree: ast.AST) -> Iterator[str]:
    """What may run code from a file. Of `pickle` only the name of its error may be used."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in RUNS_CODE:
            yield f"line {node.lineno}: from {node.module}"
        if isinstance(node, ast.Import) and any(
            name.name in RUNS_CODE and (name.name != "pickle" or name.asname) for name in node.names
        ):
            yield f"line {node.lineno}: import"
        if isinstance(node, ast.Attribute) and dotted(node.value) == "pickle" and node.attr != "UnpicklingError":
            yield f"line {node.lineno}: pickle.{node.attr}"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {word.arg: word.value for word in node.keywords}
        if name == "torch.load" and not is_constant(given.get("weights_only"), True):
            yield f"line {node.lineno}: torch.load without weights_only=True"
        if name in ("np.load", "numpy.load") and not is_constant(given.get("allow_pickle"), False):
            yield f"line {node.lineno}: np.load without allow_pickle=False"
        if name.endswith((".read_pickle", "yaml.unsafe_load", "yaml.full_load")):
            yield f"line {node.lineno}: {name}"
        if name == "yaml.load" and not any("Loader" in dotted(argument) for argument in node.args[1:]):
            yield f"line {node.lineno}: yaml.load without a loader of ours"
        if name in ("eval", "exec"):
            yield f"line {node.lineno}: {name}"


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_every_package_is_read() -> None:
    assert {source.package for source in SOURCES} == set(PACKAGES)
    assert len(SOURCES) > 40


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_arrows_run_one_way(source: Source) -> None:
    found = set(imports(source.tree))
    assert found & {*PACKAGES, "tests", "benchmarks"} <= MAY_IMPORT[source.package]
    if source.package != "orchestration":
        forbidden = MACHINERY if source.package == "models" else MACHINERY | {"torch", "transformers"}
        assert not found & forbidden
    assert "." not in found, "imports are absolute"


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_nothing_runs_code_from_a_file(source: Source) -> None:
    assert list(unsafe_loads(source.tree)) == []


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_no_file_is_too_long(source: Source) -> None:
    assert len(source.path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_ray_is_named_in_few_places() -> None:
    """Where Ray is touched can be guessed: launching, campaigns, serving, tasks over data, and the cluster."""
    touching = {str(source.path.relative_to(REPOSITORY / "orchestration")) for source in SOURCES if uses_ray(source)}
    folders = ("campaigns/", "clusters/", "doctor/", "drill/", "serving/")
    assert {name for name in touching if not name.startswith(folders)} <= {
        "cluster.py",
        "data/shard_tasks.py",
        "training/elastic.py",
        "training/launch.py",
    }


def uses_ray(source: Source) -> bool:
    return source.package == "orchestration" and "ray" in set(imports(source.tree))


@pytest.mark.parametrize(
    ("code", "problems"),
    [
        ("LOAD(path)", 1),
        ("LOAD(path, weights_only=False)", 1),
        ("LOAD(path, weights_only=True)", 0),
        ("np.load(path)", 1),
        ("np.load(path, allow_pickle=True)", 1),
        ("np.load(path, mmap_mode='r', allow_pickle=False)", 0),
        ("yaml.load(text)", 1),
        ("yaml.load(text, OurLoader)", 0),
        ("yaml.safe_load(text)", 0),
        ("import pickle\npickle.Unpickler(file)", 1),
        ("import pickle as p", 1),
        ("from pickle import load", 1),
        ("import cloudpickle", 1),
        ("import pickle\ntry: pass\nexcept pickle.UnpicklingError: pass", 0),
        ("eval('1')", 1),
        ("net.eval()", 0),
    ],
)
def test_the_reader_finds_what_it_looks_for(code: str, problems: int) -> None:
    code = code.replace("LOAD", "torch.load")  # so that a search for such calls finds none here
    assert len(list(unsafe_loads(ast.parse(code)))) == problems


def test_the_reader_finds_imports_everywhere() -> None:
    code = "import a.b\nfrom c.d import e\ndef f():\n    import ray\nfrom . import g\nimport_module('mlflow.x')\n"
    assert set(imports(ast.parse(code))) == {"a", "c", "ray", ".", "mlflow"}
