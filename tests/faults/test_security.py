"""Nothing that is read can run code, and nothing that is named can leave its folder."""

import ast
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import _tiny as tiny
from serve import _made as made

import anabranch
from anabranch.engine.backbone import load as backbone
from anabranch.engine.backbone import twin
from anabranch.engine.cache import read_tensors, recall
from anabranch.engine.checkpoint import Checkpoint
from anabranch.engine.model import load
from anabranch.errors import InputError, WorkError
from anabranch.serve import upload
from anabranch.task.data import load_task
from anabranch.task.plan import TaskSpec, read_plan

SRC = Path(anabranch.__file__).parent
FILES = sorted(SRC.rglob("*.py"))
BAD_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
BAD_NAMES = {"eval", "exec", "compile", "__import__"}
BAD_CALLS = {
    "torch.load", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "yaml.load", "yaml.full_load", "yaml.unsafe_load",
    "yaml.load_all", "os.system", "os.popen", "shutil.unpack_archive", "numpy.load", "np.fromfile", "pd.read_pickle", "pandas.read_pickle",
    "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp",
}  # fmt: skip


def dotted(node: ast.AST) -> str:
    return (
        f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "?"
    )


def deeds(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    if alias.name.partition(".")[0] in BAD_MODULES:
                        yield f"line {node.lineno}: import {alias.name}"
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in BAD_MODULES:
                yield f"line {node.lineno}: from {module}"
            case ast.Call(func=ast.Name(id=name)) if name in BAD_NAMES:
                yield f"line {node.lineno}: {name}"
            case ast.Call(func=ast.Attribute() as func) if dotted(func) in BAD_CALLS or func.attr == "extractall":
                yield f"line {node.lineno}: {dotted(func)}"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np"), attr="load"), keywords=keywords) if any(
                k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and k.value.value is False) for k in keywords
            ):
                yield f"line {node.lineno}: np.load with pickles"
            case ast.keyword(arg="trust_remote_code" | "allow_pickle" | "shell", value=value) if not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                yield f"line {value.lineno}: {node.arg} is not False"
            case ast.keyword(arg="weights_only", value=ast.Constant(value=False)):
                yield f"line {node.value.lineno}: weights_only=False"


def models_read(tree: ast.AST) -> Iterator[str]:
    """Weights that are read through transformers without saying that a pickle will not do."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained":
            config = any(word in dotted(node.func) for word in ("AutoConfig", "AutoTokenizer"))
            said = any(
                k.arg == "use_safetensors" and isinstance(k.value, ast.Constant) and k.value.value is True for k in node.keywords
            )
            if not config and not said and not any(k.arg is None for k in node.keywords):
                yield f"line {node.lineno}: {dotted(node.func)}"


def test_the_sources_run_nothing_that_they_read():
    found = {str(p.relative_to(SRC)): list(deeds(ast.parse(p.read_text(encoding="utf-8")))) for p in FILES}
    assert not {file: lines for file, lines in found.items() if lines}
    read = {str(p.relative_to(SRC)): list(models_read(ast.parse(p.read_text(encoding="utf-8")))) for p in FILES}
    assert not {file: lines for file, lines in read.items() if lines}


def test_such_deeds_are_seen():
    bad = (
        "import pickle\nfrom joblib import load\neval(x)\nexec('y')\ntorch.load(p)\nyaml.load(f)\nos.system(x)\nnp.load(f, allow_pickle=True)\n"
        "f(trust_remote_code=ask)\narchive.extractall()\nsubprocess.run(x, shell=True)\ntorch.load(p, weights_only=False)\n"
    )
    good = "import json\nmodel.eval()\nnp.load(f, mmap_mode='r')\nyaml.safe_load(f)\nf(trust_remote_code=False)\nre.compile('x')\nimport torch\n"
    assert len({line.partition(":")[0] for line in deeds(ast.parse(bad))}) == 12 and not list(deeds(ast.parse(good)))
    assert list(models_read(ast.parse("AutoModel.from_pretrained(x)"))) and not list(
        models_read(ast.parse("AutoTokenizer.from_pretrained(x)"))
    )


# ---- pickles under other names


class Bomb:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path) -> Iterator[Path]:
    """A folder that is made if a bomb goes off."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


def bombs(mark: Path, place: Path) -> list[bytes]:
    """A plain pickle, as torch writes it, and each behind what a reader may look at first."""
    torch.save({"weight": Bomb(str(mark))}, place / "bomb.pt")
    plain, zipped = pickle.dumps(Bomb(str(mark))), (place / "bomb.pt").read_bytes()
    return [plain, zipped, (2).to_bytes(8, "little") + b"{}" + plain, b"\x93NUMPY\x01\x00" + plain]


def test_the_bomb_is_one(tmp_path):
    pickle.loads(pickle.dumps(Bomb(str(tmp_path / "ran"))))
    assert (tmp_path / "ran").is_dir()


def test_a_pickle_in_a_bundle_is_refused_and_never_run(tmp_path, mark):
    run = made.bundle(tmp_path / "run", {"a": "classify", "b": "retrieve"})
    for bomb in bombs(mark, tmp_path):
        for path in sorted((run / "bundle").iterdir()):
            before = path.read_bytes()
            path.write_bytes(bomb)
            with pytest.raises(WorkError, match=f"{path.name} is damaged"):
                load(run)
            path.write_bytes(before)
        (tmp_path / "x.safetensors").write_bytes(bomb)
        with pytest.raises(WorkError, match="is damaged"):
            read_tensors(tmp_path / "x.safetensors")
        assert recall(tmp_path / "x.safetensors") is None
    assert load(run)


def test_a_pickle_in_the_caches_is_made_again_and_never_run(tmp_path, mark, whole):
    plan, good, _ = whole
    run = Path(shutil.copytree(good, tmp_path / "run"))
    bomb = pickle.dumps(Bomb(str(mark)))
    for path in (run / "work").rglob("*.*"):
        path.write_bytes(bomb)
    results = tiny.fit(plan, run, steps=4, resume=True)
    assert tiny.files(run / "bundle") == tiny.files(good / "bundle") and results["tasks"]


def test_weights_that_are_a_pickle_are_refused_and_never_run(tmp_path, mark):
    for nth, bomb in enumerate(bombs(mark, tmp_path)):
        for name in ("pytorch_model.bin", "model.safetensors"):
            folder = tiny.bert(tmp_path / f"bert{nth}{name[:1]}")
            (folder / "model.safetensors").unlink()
            (folder / name).write_bytes(bomb)
            with pytest.raises((InputError, WorkError), match=r"no backbone|are damaged"):
                backbone(str(folder))
            with pytest.raises(InputError, match=r"is a pickle|is damaged or no safetensors"):
                Checkpoint(folder)


def test_code_that_comes_with_a_backbone_is_never_run(tmp_path, mark):
    folder = tiny.bert(tmp_path / "bert")
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass C: pass\n")
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "code.C", "AutoModel": "code.C"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "of-our-own", "auto_map": names}))
    with pytest.raises(InputError, match="no backbone"):
        backbone(str(folder))
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": names}))
    assert backbone(str(folder)).d == 32  # a kind that transformers knows: its own code
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"auto_map": {"AutoTokenizer": ["code.C", "code.C"]}}))
    assert backbone(str(folder)).tokenizer("red")["input_ids"]


def test_a_pickle_in_an_archive_is_refused_and_never_run(tmp_path, mark):
    live = load(made.bundle(tmp_path / "run", {"a": "classify"}))
    one = made.bundle(tmp_path / "one", {"new": "classify"}, seed=3)
    name = next(p.name for p in (one / "bundle").glob("*.safetensors"))
    for bomb in bombs(mark, tmp_path):
        for archive in (
            bomb,
            made.zipped(one, **{name: bomb}),
            made.zipped(one, **{"data.pkl": bomb}),
            made.zipped(one, **{"bundle.json": bomb}),
        ):
            with (
                pytest.raises(InputError, match="archive"),
                upload.checked(archive, "new", live, twin(live.backbone), 10**7) as found,
            ):
                assert found is None
    assert set(live.tasks) == {"a"}


def test_a_pickle_as_data_is_refused_and_never_run(tmp_path, mark):
    for bomb in bombs(mark, tmp_path):
        for ending in (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".jsonl.gz"):
            path = tmp_path / f"rows{ending}"
            path.write_bytes(bomb)
            with pytest.raises(InputError, match="task a: "):
                load_task("a", TaskSpec(data=str(path)))
        (tmp_path / "plan.yaml").write_bytes(bomb)
        with pytest.raises(InputError):
            read_plan(tmp_path / "plan.yaml")


# ---- links and paths


def test_a_link_in_an_archive_leads_nowhere(tmp_path):
    """A member may call itself a link to another file: its text is taken for content, and that is damaged."""
    live = load(made.bundle(tmp_path / "run", {"a": "classify"}))
    one = made.bundle(tmp_path / "one", {"new": "classify"}, seed=3)
    name = next(p.name for p in (one / "bundle").glob("*.safetensors"))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo(name)
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(one / "bundle" / name))
        archive.write(one / "bundle" / "bundle.json", "bundle.json")
    with (
        pytest.raises(InputError, match="is damaged"),
        upload.checked((tmp_path / "x.zip").read_bytes(), "new", live, twin(live.backbone), 10**7) as found,
    ):
        assert found is None


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc", "..", ".", "a\\b/../c", "~/x", "a\0b", "", "all", "-rf", "a\nb"])
def test_a_tasks_name_in_a_plan_is_no_path(tmp_path, name):
    tiny.folder(tmp_path / "data", "classify", {"train": 12})
    with pytest.raises(InputError, match="cannot name a task|cannot be a path"):
        read_plan({"tasks": {name: {"data": str(tmp_path / "data")}}})


@pytest.mark.parametrize("key", ["train", "valid", "test", "corpus"])
@pytest.mark.parametrize("word", ["../secret.jsonl", "/etc/passwd", "a/../../secret.jsonl", "link.jsonl"])
def test_a_task_folder_from_elsewhere_reads_nothing_outside(tmp_path, key, word):
    """A plan's own paths are the user's; those that come with data are not."""
    tiny.lines(tmp_path / "secret.jsonl", tiny.rows("classify", 12))
    folder = tiny.folder(tmp_path / "data", "classify", {"train": 12})
    (folder / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (folder / "task.json").write_text(json.dumps({"kind": "classify", key: word}))
    with pytest.raises(InputError, match=f"{key} leaves the task folder"):
        load_task("a", TaskSpec(data=str(folder)))


def test_a_run_is_written_below_its_folder_alone(tmp_path, whole):
    plan, good, _ = whole
    before = {p for p in tmp_path.parent.rglob("*")}
    tiny.fit(plan, tmp_path / "a" / "run", steps=4)
    new = {p for p in tmp_path.parent.rglob("*")} - before
    assert new and all(p.is_relative_to(tmp_path / "a") for p in new)
    assert (good / "bundle").is_dir()
