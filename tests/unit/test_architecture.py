"""The shape of the house, held by tests: which part may import which, and what must stay true of the whole."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import job
from job import errors

ROOT = Path(job.__file__).parent
GROUND = {"errors", "uris", "config", "config_file"}
MAY_IMPORT = {
    "errors": set(),
    "uris": set(),
    "config": {"errors", "uris"},
    "config_file": {"errors", "config"},
    "config_table": {"config", "config_file"},
    "tensor_file": set(),
    "infra": {"errors", "uris", "config"},
    "model": {"errors", "config", "tensor_file"},
    "data": {"errors", "uris", "config", "infra"},
    "checkpoint": {"errors", "config", "infra", "tensor_file"},
    "report": {"errors", "uris", "config", "infra"},
    "training": GROUND | {"infra", "model", "data", "checkpoint", "report"},
}
MAY_IMPORT["serving"] = set(MAY_IMPORT)
MAY_IMPORT["checks"] = set(MAY_IMPORT) - {"serving", "report"}
COMMANDS = {"pretrain", "prepare", "evaluate", "generate", "checkpoints", "weights"}
COMMANDS |= {"serve", "serve_test", "ladder", "check", "bench"}
BELOW_COMMANDS = set(MAY_IMPORT)
MAY_IMPORT |= dict.fromkeys(COMMANDS, BELOW_COMMANDS)
MAY_IMPORT |= {
    "cli_options": GROUND,
    "cli_bench": GROUND | {"infra", "cli_options", "bench"},
    "cli_checkpoints": GROUND | {"cli_options", "checkpoints"},
    "cli_report": GROUND | {"cli_options", "report"},
    "cli_weights": GROUND | {"infra", "cli_options", "weights"},
    "cli_serve": GROUND | {"infra", "cli_options", "serving", "serve"},
    "cli_serve_test": GROUND | {"infra", "cli_options", "generate", "serving", "serve_test"},
    "cli_config": GROUND | {"cli_options", "config_table"},
    "cli_check": GROUND | {"cli_options", "checks", "check"},
    "cli_ladder": GROUND | {"infra", "cli_options", "ladder"},
    "cli": GROUND
    | {"infra", "cli_options", "cli_checkpoints", "cli_report", "cli_weights", "cli_serve", "cli_serve_test"}
    | {"cli_check", "cli_config", "cli_ladder", "cli_bench"}
    | COMMANDS,
    "__main__": {"cli"},
    "__init__": {"config_file", "model", "training"},
}

FILES = sorted(ROOT.rglob("*.py"))


def imported(tree):
    """Parts of the package that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("job."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "job":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("job."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    """Each part of the package imports only the parts below it."""
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")

    assert set(imported(ast.parse(path.read_text()))) <= MAY_IMPORT[part] | {part}


def test_files_import_each_other_in_no_circle():
    """No chain of imports leads from a file back to itself."""
    graph = {}
    for path in FILES:
        name = "job." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        modules = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
        graph[name] = {module for module in modules if module.startswith("job.")}

    def reaches(start, goal, seen):
        return any(
            module == goal or (module not in seen and not seen.add(module) and reaches(module, goal, seen))
            for module in graph.get(start, ())
        )

    assert not [name for name in graph if reaches(name, name, set())]


def test_help_does_not_import_torch():
    """`gpt-job --help` answers without loading torch, numpy, boto3 or matplotlib."""
    code = (
        "import sys; sys.argv = ['gpt-job', '--help']; import job.cli\ntry: job.cli.main()\nexcept SystemExit: pass\n"
    )
    code += "print({'torch', 'boto3', 'numpy', 'matplotlib'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said.splitlines()[-1] == "set()"


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_executed(path):
    """No eval, no pickle, no torch.load, no shell, no unverified TLS anywhere in the job."""
    text = path.read_text()
    forbidden = {"eval", "exec", "torch.load", "yaml.load", "os.system", "__import__"}
    found = {call for call in calls(ast.parse(text)) if call in forbidden or call.startswith("pickle.")}

    assert not found
    assert "verify=False" not in text
    assert "extractall" not in text


EXIT_CODES = {
    name: cls.exit_code
    for name, cls in vars(errors).items()
    if isinstance(cls, type) and issubclass(cls, errors.JobError)
}


def test_exit_codes_are_sysexits():
    """Each error ends the process with its own documented number."""
    assert EXIT_CODES == {
        "JobError": 1,
        "ConfigError": 78,
        "DataError": 65,
        "NotFoundError": 66,
        "StorageError": 69,
        "UnreachableError": 69,
        "DivergedError": 70,
        "FencedError": 73,
        "Interrupted": 75,
        "AccessError": 77,
    }


@pytest.mark.parametrize("document", ["README.md", "job/errors.py"])
def test_exit_codes_are_documented(document):
    """Code and error stand side by side in every table of them."""
    path = ROOT.parent / document
    if not path.exists():
        pytest.skip(f"{document} is not beside the package")
    lines = path.read_text().splitlines()
    missing = [
        name
        for name, code in EXIT_CODES.items()
        if name != "JobError" and not any(re.search(rf"\b{code}\b", line) and name in line for line in lines)
    ]

    assert not missing
