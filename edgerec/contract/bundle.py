"""A bundle: the folder (or a .zip of it) in which a model travels. Data only; nothing in it is executed."""

from __future__ import annotations

import io
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from edgerec.contract.content import describe_file
from edgerec.contract.files import refuse_existing, replacing, replacing_folder, sha256
from edgerec.contract.manifest import Manifest
from edgerec.errors import BundleError

MANIFEST = "manifest.json"
MAX_FILE_BYTES = 1 << 30
# What leads elsewhere on some system, or is in no file's name on any.
_NOWHERE = re.compile(r"[\\:\0\ud800-\udfff]")

Reader = Callable[[str], bytes | None]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its manifest and the content of its files, whose digests were checked."""

    path: Path
    manifest: Manifest
    files: Mapping[str, bytes]

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read a bundle's folder or .zip.

        Raises:
            BundleError: no bundle there, a file missing, changed or outside of it, a newer schema.
        """
        path = Path(path)
        read = _zip_reader(path) if path.is_file() else _folder_reader(path)
        content = read(MANIFEST)
        if content is None:
            kind = describe_file(path)
            also = f" (it {kind})" if kind and kind != "is a folder" else ""
            raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}{also}; make one with edgerec export")
        manifest = Manifest.from_json(content, f"{path}/{MANIFEST}")
        files = {}
        for name, digest in manifest.files.items():
            _refuse_climbing(path, name)
            found = read(name)
            if found is None:
                raise BundleError(f"{path}: {name} is missing: copy or export the bundle again")
            if sha256(found) != digest:
                raise BundleError(
                    f"{path}: {name} was changed or damaged (its SHA-256 is not the manifest's): "
                    "copy or export the bundle again"
                )
            files[name] = found
        return cls(path, manifest, files)

    @staticmethod
    def stands_at(path: Path) -> bool:
        """Whether there is a bundle, whole or damaged: something that --overwrite may replace."""
        try:
            content = (_zip_reader(path) if path.is_file() else _folder_reader(path))(MANIFEST)
            values = json.loads(content or b"")
        except (BundleError, ValueError, RecursionError):
            return False
        return isinstance(values, dict) and {"schema", "labels", "model", "files"} <= values.keys()

    @property
    def model(self) -> bytes:
        """The .tflite file's bytes."""
        return self.files[self.manifest.model]

    @staticmethod
    def write(path: str | Path, manifest: Manifest, files: Mapping[str, bytes], *, overwrite: bool = False) -> Bundle:
        """Write a bundle whole or not at all, as a folder, or as a .zip where ``path`` ends so.

        ``manifest.files`` is made here, from ``files``.
        """
        path = Path(path)
        for name in files:
            _refuse_climbing(path, name)
        manifest = replace(manifest, files={name: sha256(files[name]) for name in sorted(files)})
        refuse_existing(path, overwrite)
        manifest.check(str(path))
        content = {MANIFEST: manifest.to_json().encode(), **files}
        if path.suffix == ".zip":
            with replacing(path) as partial:
                partial.write_bytes(_zip(content))
        else:
            with replacing_folder(path, overwrite=overwrite) as partial:
                for name, data in content.items():
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    (partial / name).write_bytes(data)
        return Bundle(path, manifest, dict(files))


def _refuse_climbing(path: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or _NOWHERE.search(name):
        raise BundleError(f"{path}: the file name {name!r} leads out of the bundle: do not trust it")


def _folder_reader(path: Path) -> Reader:
    if not path.exists():
        raise BundleError(f"{path} does not exist; expected a bundle's folder or .zip (edgerec export)")
    root = path.resolve()

    def read(name: str) -> bytes | None:
        try:
            file = (path / name).resolve()
            if not file.is_relative_to(root):
                raise BundleError(f"{path}: {name} is a link that leads out of the bundle: do not trust it")
            if not file.is_file():
                return None
            if file.stat().st_size > MAX_FILE_BYTES:
                raise BundleError(f"{path}: {name} has {file.stat().st_size} bytes, more than a bundle may hold")
            return file.read_bytes()
        except OSError as error:
            raise BundleError(
                f"{path}: {name} cannot be read ({error.strerror}): look at its name and permissions"
            ) from None

    return read


def _zip_reader(path: Path) -> Reader:
    try:
        archive = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        kind = describe_file(path) or "is neither a folder nor a .zip"
        raise BundleError(f"{path} is not a bundle: it {kind}. edgerec export writes bundles") from None
    # A zip of the folder's content, or of the folder itself.
    manifests = [n for n in archive.namelist() if PurePosixPath(n).name == MANIFEST and n.count("/") <= 1]
    prefix = manifests[0].removesuffix(MANIFEST) if manifests else ""

    def read(name: str) -> bytes | None:
        try:
            info = archive.getinfo(prefix + name)
        except KeyError:
            return None
        if stat.S_ISLNK(info.external_attr >> 16):
            raise BundleError(f"{path}: {name} is a link: do not trust it")
        if info.file_size > MAX_FILE_BYTES:
            raise BundleError(f"{path}: {name} has {info.file_size} bytes, more than a bundle may hold")
        try:
            return archive.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError, LZMAError) as error:
            raise BundleError(f"{path}: {name} cannot be unpacked ({error}): copy the bundle again") from None

    return read


def _zip(content: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            # A fixed time: the same bundle is the same bytes.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
