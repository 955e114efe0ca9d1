"""What can run foreign code, unpack archives or trust any server is used nowhere but where it is listed."""

import ast
from pathlib import Path

import pytest

import job

ROOT = Path(job.__file__).parent
ALLOWED = {  # (file, call), each with its reason beside it
    ("infra/allocator.py", "ctypes.CDLL"),  # of the process itself, no library is loaded: mallopt has no other way in
    ("serving/testing/process.py", "subprocess"),  # the server under test is a process of its own: our own command
    ("training/reporter.py", "subprocess"),  # the page is drawn beside training, by ourselves with our own paths
}

NAMES = {"eval", "exec", "compile", "__import__", "extractall", "extract", "unpack_archive"}
MODULES = {"subprocess", "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "pty"}
MODULES |= {"runpy", "code", "codeop", "imp", "tarfile", "zipfile"}
CALLS = {
    "torch.load",
    "torch.hub.load",
    "numpy.load",
    "np.load",
    "yaml.load",
    "yaml.unsafe_load",
    "os.system",
    "os.popen",
}
CALLS |= {"importlib.import_module", "ssl._create_unverified_context", "builtins.eval", "builtins.exec"}
CALLS |= {f"os.{kind}{how}" for kind in ("exec", "spawn") for how in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")}
CALLS |= {"os.posix_spawn", "os.posix_spawnp", "ctypes.CDLL", "ctypes.cdll.LoadLibrary", "torch.ops.load_library"}
SWITCHES = {("verify", False), ("weights_only", False), ("allow_pickle", True), ("shell", True), ("use_ssl", False)}
SWITCHES |= {("check_hostname", False), ("trust_remote_code", True), ("cert_reqs", "CERT_NONE")}


def dangers(text: str) -> list[str]:
    """Everything on the lists above that a module's text uses, by whatever name it was imported."""
    tree = ast.parse(text)
    known = {}  # name here -> what it is
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            known |= names
            found += [node.module] if node.module.partition(".")[0] in MODULES else []
            found += [name for name in names.values() if name in CALLS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            first, dot, rest = ast.unparse(node).partition(".")
            full = known.get(first, first) + dot + rest
            if full in CALLS or (full in NAMES and full not in known):
                found.append(full)
        if isinstance(node, ast.Attribute) and node.attr in {"extractall", "unpack_archive"}:
            found.append(node.attr)
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            found += [f"{name}={value}" for name, value in SWITCHES if (name, value) == (node.arg, node.value.value)]
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_dangerous_is_used_unlisted(path):
    """No process, pickle, eval, archive or unverified connection outside the list."""
    name = str(path.relative_to(ROOT))

    assert [danger for danger in dangers(path.read_text()) if (name, danger) not in ALLOWED] == []


@pytest.mark.parametrize(
    "text",
    [
        "import subprocess",
        "from subprocess import run as go",
        "import pickle as p\np.loads(b'')",
        "eval('1')",
        "f = exec",
        "__import__('os')",
        "import torch\ntorch.load('x')",
        "from torch import load\nload('x')",
        "import torch as t\nt.load('x')",
        "import yaml\nyaml.load('')",
        "import os\nos.system('ls')",
        "from os import system",
        "import os as o\no.execvp('a', ['a'])",
        "archive.extractall('/')",
        "import shutil\nshutil.unpack_archive('a')",
        "client('s3', verify=False)",
        "import numpy as np\nnp.load('x')",
        "load('x', allow_pickle=True)",
        "import importlib\nimportlib.import_module('x')",
        "import marshal",
        "import shelve",
    ],
)
def test_the_list_is_not_blind(text):
    """Each of them is seen, under another name too."""
    assert dangers(text)


def test_harmless_words_are_not_dangers():
    """A method called eval or compile, and a regular expression, are none of them."""
    assert dangers("import re\nre.compile('a')\nmodel.eval()\nmodel.compile()\nself.load('x')") == []
