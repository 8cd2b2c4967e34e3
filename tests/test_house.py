"""The architecture, read off the sources: which way imports point, one stem per operator."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
OPERATORS = re.findall(r'm\.def\(\s*"(\w+)\(', (CSRC / "library.cpp").read_text())
# A second step of an operator, <stem>_<step>, lives in the files of its stem.
STEMS = [n for n in OPERATORS if not any(n.startswith(f"{other}_") for other in OPERATORS)]
FRAMEWORK = re.compile(r"^(torch|ATen|c10|pybind11)/")
REID_WORDS = re.compile(
    r"re-?id\b|\bpersons?\b|pedestrian|market-?1501|msmt|cuhk|dukemtmc|\bvit\b|resnet",
    re.IGNORECASE,
)

# Who must not import whom; a name covers everything below it.
FORBIDDEN = {
    "oskt_ext": ("oskt", "tests", "bench", "tools"),
    "oskt": ("tests", "bench", "tools"),
    "oskt.data": ("oskt.models", "oskt.train", "oskt.cli"),
    "oskt.models": ("oskt.data", "oskt.train", "oskt.cli"),
    "oskt.coupling": ("oskt.chain", "oskt.reading", "oskt.train"),
    "oskt.reading": ("torch", "oskt_ext", "oskt.chain", "oskt.train"),
    "oskt.chain": ("oskt.data", "oskt.train", "oskt.evaluation", "oskt.cli"),
    "oskt.train": ("oskt.evaluation", "oskt.task", "oskt.cli"),
    "oskt.evaluation": ("oskt.chain", "oskt.train", "oskt.cli"),
}


def python_modules() -> dict[str, Path]:
    """Every module of the two packages by its dotted name."""
    modules = {}
    for base, package in ((ROOT, "oskt_ext"), (ROOT / "python", "oskt")):
        for path in sorted((base / package).rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


MODULES = python_modules()


def imports_of(module: str, at_import: bool = False) -> set[str]:
    """The modules that a module imports anywhere, or only those that importing it runs."""
    found = set()
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(above + ([node.module] if node.module else []))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return found


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def includes_of(path: Path, seen: set[Path]) -> set[str]:
    """The foreign headers that a C++ file reaches through headers of csrc/."""
    foreign = set()
    for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE):
        own = next((p for p in (CSRC / name, path.parent / name) if p.exists()), None)
        if own is None:
            foreign.add(name)
        elif own not in seen:
            seen.add(own)
            foreign |= includes_of(own, seen)
    return foreign


@pytest.mark.parametrize(
    "path",
    [*CSRC.rglob("*_kernel.cu"), *CSRC.rglob("*.cuh"), *(CSRC / "common").rglob("*.*")],
    ids=lambda path: path.relative_to(CSRC).as_posix(),
)
def test_kernels_and_common_know_no_torch(path):
    reached = sorted(name for name in includes_of(path, {path}) if FRAMEWORK.match(name))
    assert reached == []


def test_sources_know_no_person_reidentification():
    """Comments may name a real shape or the origin of a rule; the code may not."""
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in sorted(CSRC.rglob("*.*"))
        for match in REID_WORDS.finditer(re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_one_way(module):
    forbidden = {
        target
        for package, targets in FORBIDDEN.items()
        if is_below(module, package)
        for target in targets
    }
    wrong = [i for i in sorted(imports_of(module)) if any(is_below(i, f) for f in forbidden)]
    assert wrong == []


def test_no_import_cycles():
    """Packages' __init__ files re-export, so only the ways between plain modules count."""
    plain = {name for name, path in MODULES.items() if path.name != "__init__.py"}
    graph = {name: imports_of(name, at_import=True) & plain for name in plain}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, "cycle: " + " -> ".join((*trail, module))
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("stem", STEMS)
def test_one_stem_in_every_layer(stem):
    layers = {f"csrc/*/{stem}{end}" for end in ("_cpu.cpp", "_cuda.cpp", "_kernel.cu")}
    layers |= {f"oskt_ext/{stem}.py", f"tests/test_{stem}.py", f"bench/bench_{stem}.py"}
    missing = sorted(layer for layer in layers if not list(ROOT.glob(layer)))
    assert missing == []
    assert re.search(
        rf"^def {stem}\w*\(", (ROOT / "oskt_ext/reference.py").read_text(), re.MULTILINE
    )


def test_source_list_is_complete():
    lines = (CSRC / "sources.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    on_disk = [p.relative_to(CSRC).as_posix() for e in ("*.cpp", "*.cu") for p in CSRC.rglob(e)]
    assert sorted(listed) == sorted(on_disk)


def test_version_stands_in_one_place():
    version = (ROOT / "version.txt").read_text().strip()
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    spoken = re.compile(rf"version\W{{1,5}}{re.escape(version)}", re.IGNORECASE)
    texts = [ROOT / name for name in ("setup.py", "pyproject.toml", "CMakeLists.txt")]
    texts += [*MODULES.values(), *CSRC.rglob("*.*")]
    assert [str(path) for path in texts if spoken.search(path.read_text())] == []


def test_stub_matches_the_compiled_module():
    import oskt_ext
    from oskt_ext import _C

    def public(names):
        return {name for name in names if not name.startswith("_")}

    stub = ast.parse((ROOT / "oskt_ext/_C.pyi").read_text()).body
    declared = {n.name: n for n in stub if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    assert public(declared) == public(dir(_C))
    for name, node in declared.items():
        if isinstance(node, ast.ClassDef):
            members = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            assert public(members) == public(dir(getattr(_C, name))), name
    assert oskt_ext.__version__ == (ROOT / "version.txt").read_text().strip()
