"""No pickle of anyone else is loaded: unpickling runs code. Found in the syntax of all sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

LOADERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# file -> what it may do, and why
ALLOWED = {
    # requests of the parent to its own child, over a socket that no one else has; replies are data
    "curation/isolate.py": {"pickle.dumps", "pickle.loads"},
    # a sample of the loader's own child, over the pipe by which PyTorch pickles samples
    "training/data.py": {"pickle.dumps", "pickle.loads"},
    # PyTorch's .metadata of a checkpoint, by an unpickler that calls no other than SAFE_CLASSES
    "training/checkpoint.py": {"pickle.Unpickler", "pickle.UnpicklingError"},
}


def sources() -> list[Path]:
    folders = ("curation", "stages", "pipelines", "training")
    return [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]


def uses(source: str) -> Iterator[str]:
    """What may load a pickle in a source."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LOADERS:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in LOADERS:
            yield ast.unparse(node)
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        name = ast.unparse(node.func)
        if name.endswith("torch.load") and keywords.get("weights_only") != "True":
            yield name
        if name in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False":
            yield name
        if name in ("pd.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load"):
            yield name


def test_no_source_loads_a_pickle():
    found = {str(p.relative_to(REPOSITORY)): set(uses(p.read_text())) for p in sources()}
    assert len(found) > 150
    assert {name: loaded for name, loaded in found.items() if loaded} == ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "from pickle import loads",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import yaml\nyaml.load(f, Loader=x)",
    ],
)
def test_each_way_to_load_a_pickle_is_found(source):
    assert list(uses(source))
