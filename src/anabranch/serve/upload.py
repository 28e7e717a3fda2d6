"""A task that comes as an archive: a zip of a bundle's files. Checked in a folder of its own, tried, then taken over.

No name from a request or an archive reaches the file system: members are bundle.json or named by their checksum, and are
written under these names into a fresh folder; a task's name is a key of bundle.json.
"""

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from anabranch.engine import change, store
from anabranch.engine.backbone import Backbone
from anabranch.engine.model import Model
from anabranch.errors import InputError, WorkError, nearest
from anabranch.task.plan import task_name

MEMBER = re.compile(rf"(?:bundle/)?(bundle\.json|{store.TENSORS}|{store.CORPUS})")
SAMPLE = {"text": "a", "text_b": "b", "tokens": ["a"], "choices": ["a", "b"]}  # a row that every kind can read


@contextmanager
def checked(data: bytes, name: str, live: Model, backbone: Backbone, most: int) -> Iterator[tuple[Model, str]]:
    """The archive's task ``name``, or its only one, as a model of that task alone, with its index; and what it calls it.

    ``backbone``: that of ``live``, for this thread. InputError for an archive that is none, holds other files than a
    bundle's or more than ``most`` bytes, is damaged, or was made for another backbone or other deltas than ``live``.
    """
    task_name(name)
    with TemporaryDirectory(prefix="anabranch-") as temp:
        folder = Path(temp)
        try:
            unpack(data, folder, most)
            model, task = one(folder, name, live, backbone)
            json.dumps(model.predict(task, [SAMPLE]), allow_nan=False)
            if model.task(task).corpus is not None:
                model.index_of(model.task(task))
        except (InputError, WorkError) as error:
            said = str(error).replace(temp, "the archive")
            raise InputError(f"{said if 'archive' in said else f'the archive: {said}':.1500}") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "record"
            raise InputError(f"the archive: the task's {place}: {first['msg']}, got {first['input']!r:.60}") from None
        except Exception as error:  # what bundle.json says is data from outside: it may say anything
            raise InputError(f"the archive holds no task that works here: {type(error).__name__}: {error!s:.200}") from None
        yield model, task


def unpack(data: bytes, folder: Path, most: int) -> None:
    how = "send a zip of a bundle's files: zip -j task.zip RUN/bundle/*"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [m for m in archive.infolist() if m.filename != "bundle/"]
            if any(m.flag_bits & 1 for m in members):
                raise InputError(f"the archive is encrypted; {how}")
            if strange := next((m.filename for m in members if not MEMBER.fullmatch(m.filename)), None):
                raise InputError(f"the archive holds {strange[:80]!a}, which is no file of a bundle; {how}")
            if (size := sum(m.file_size for m in members)) > most:
                raise InputError(f"the archive holds {size} bytes, at most {most} are taken")
            for member in members:
                path = folder / MEMBER.fullmatch(member.filename)[1]  # type: ignore[index]
                with archive.open(member) as file, open(path, "xb") as out:
                    out.write(file.read(member.file_size + 1))
    except FileExistsError:
        raise InputError("the archive holds a file twice") from None
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise InputError(f"the archive cannot be read ({error!s:.80}); {how}") from None


def one(folder: Path, name: str, live: Model, backbone: Backbone) -> tuple[Model, str]:
    _, bundle = store.open_bundle(folder)
    store.same_backbone(live.backbone, bundle, folder)
    tasks = bundle["tasks"]
    task = name if name in tasks else next(iter(tasks)) if len(tasks) == 1 else ""
    if not task:
        raise InputError(f"the archive has {len(tasks)} tasks, none of them {name!r}{nearest(name, tasks)}")
    record = tasks[task]
    store.Record.model_validate(record)
    parts = store.parts_of(folder, record["file"])
    if parts.gate or not all(bank.gate.plain for bank in live.banks):
        raise InputError("tasks that share slots through a gate come and go with all their slots: fit the bundle anew")
    if record["rung"] == "shared":  # an own slot here, where the shared one is another
        slot, corpus = store.parts_of(folder, bundle["shared"]["file"]).slot, record.get("corpus")
        texts = store.corpus_of(folder, corpus) if corpus else None
        record = store.save_task(folder, record | {"rung": "delta"}, slot, parts.head, parts.post, texts, after=parts.after)
    if record["rung"] != "probe" and bundle["banks"] != live.bundle["banks"]:
        ours, theirs = (", ".join(f"{b['delta']['method']} {b['delta']['settings']}" for b in x["banks"])
                        for x in (live.bundle, bundle))  # fmt: skip
        raise InputError(f"slots of one bundle are of one form, here {ours} at the same sites; the archive has {theirs}")
    if bundle.get("tangent") != live.bundle.get("tangent"):
        raise InputError("of this bundle and the archive's one answers in the tangent space of its backbone, the other does not")
    if low(bundle) != live.tail:
        raise InputError(f"the archive's heads read block {low(bundle)} of the backbone, those of this bundle block {live.tail}")
    whole = bundle | {"tasks": {task: record}, "banks": live.bundle["banks"], "shared": None}
    return Model(folder, whole, backbone), task


def low(bundle: dict[str, Any]) -> int:
    """The block from which on the bundle's deltas sit: what is called the middle of f."""
    return max(0, min((site["depth"] for bank in bundle["banks"] for site in bank["sites"]), default=0))


def keep(run: Path, model: Model, task: str, name: str) -> None:
    """Writes a checked task into the bundle on disk, so that the next start serves it too."""
    folder, bundle = store.open_bundle(run)
    record = bundle["tasks"][name] = dict(model.task(task).record)
    for key in ("file", "corpus"):
        if record.get(key) and not (folder / record[key]).exists():
            store.copy(model.folder / record[key], folder / record[key])
    forget(bundle, name)
    store.save(folder, bundle)


def forget(bundle: dict[str, Any], name: str) -> None:
    """What else the bundle knew of a task that had the name before."""
    bundle["made"]["plan"]["tasks"].pop(name, None)
    if bundle.get("shared"):
        users = [n for n in bundle["shared"]["tasks"] if n != name]
        bundle["shared"] = bundle["shared"] | {"tasks": users} if users else None


def drop(run: Path, name: str) -> None:
    """Removes a task from the bundle on disk, if it is there."""
    if name in store.open_bundle(run)[1]["tasks"]:
        change.remove(run, name)
