"""Read and write bundles: folders or .zip files with a model and its manifest. Files in a bundle are never executed."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from edgerec.contract import bundle_size
from edgerec.contract.bundle_size import MAX_MANIFEST_BYTES, check_file_size
from edgerec.contract.format_detection import describe_file
from edgerec.contract.manifest import Manifest
from edgerec.contract.signature import (
    MAX_SIGNATURE_BYTES,
    SIGNATURE,
    RefusedSignatureError,
    Signer,
    check_signature,
)
from edgerec.errors import BundleError, SignatureError
from edgerec.utils.atomic import (
    checked_output,
    read_at_most,
    real_path,
    refuse_existing,
    replacing,
    replacing_folder,
    sha256,
    user_path,
    write_file,
)
from edgerec.utils.bounded_parsing import UnpackedSizeError, open_zip, parse_json

MANIFEST = "manifest.json"
_INVALID_PATH_CHARACTERS = re.compile(r"[\\:\0\ud800-\udfff]")

# A reader takes a file's path in the bundle and a size limit in bytes, and returns the file's content or None.
Reader = Callable[[str, int], bytes | None]


@dataclass(frozen=True)
class Bundle:
    """A bundle loaded into memory.

    Attributes:
        path: the bundle's folder or .zip file.
        manifest: the bundle's manifest.
        files: content of each file listed in the manifest. The digests of ``manifest.runtime_files`` are verified.
        warnings: one sentence for each other listed file that is missing, unreadable or has a wrong digest. These
            files do not affect predictions, so the bundle can still be used.
        manifest_content: content of manifest.json.
        signature: content of manifest.json.sig, or None if the bundle is not signed.
        signer: the signer of the bundle, or None if the signature was not checked.
    """

    path: Path
    manifest: Manifest
    files: Mapping[str, bytes]
    warnings: tuple[str, ...] = ()
    manifest_content: bytes = b""
    signature: bytes | None = None
    signer: Signer | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        allowed_signers: str | Path | None = None,
        revoked_keys: str | Path | None = None,
    ) -> Bundle:
        """Load a bundle from a folder or a .zip file.

        Args:
            path: the bundle's folder or .zip file.
            allowed_signers: file of allowed signers in the format of ``ssh-keygen``. If specified, one of them must
                have signed the bundle, and no listed file may be missing or changed. The signature is checked before
                the manifest is parsed. None accepts every bundle.
            revoked_keys: file of revoked public keys, or an OpenSSH key revocation list. Requires ``allowed_signers``.

        Raises:
            BundleError: ``path`` is not a bundle, the manifest has a newer schema version, or a file needed at runtime
                is missing, changed or outside the bundle.
            SignatureError: the bundle is not signed by an allowed signer, or the signature cannot be checked.
        """
        path = user_path(path)
        if revoked_keys is not None and allowed_signers is None:
            raise SignatureError(
                "unchecked",
                f"cannot check the keys in {revoked_keys}: also specify the file of allowed signers "
                "(--allowed-signers)",
            )
        if allowed_signers is not None:
            _refuse_inside(path, allowed_signers)
        read = _reader(path)
        content = read(MANIFEST, MAX_MANIFEST_BYTES)
        if content is None:
            kind = describe_file(path)
            also = f" (it {kind})" if kind and kind != "is a folder" else ""
            raise BundleError(
                f"{path} is not a bundle: it has no {MANIFEST}{also}. Create a bundle with edgerec export"
            )
        warnings, signature, signer = [], None, None
        try:
            signature = read(SIGNATURE, MAX_SIGNATURE_BYTES)
        except BundleError as error:
            if allowed_signers is not None:
                raise
            warnings.append(str(error))
        if allowed_signers is not None:
            signer = _check_signer(path, content, signature, allowed_signers, revoked_keys)
        manifest = Manifest.from_json(content, f"{path}/{MANIFEST}")
        if signer and (manifest.serial, manifest.signed_s) != (signer.serial, signer.signed_s or 0):
            raise SignatureError(
                "altered",
                f"{path}/{MANIFEST} does not start with its serial number and time of signing: sign the bundle with "
                "edgerec sign",
            )
        files: dict[str, bytes] = {}
        left_bytes = bundle_size.MAX_BUNDLE_BYTES
        for name, digest in manifest.files.items():
            _refuse_outside(path, name)
            try:
                problem = _read_listed(read, left_bytes, path, name, digest, files)
            except BundleError as error:
                problem = str(error)
            left_bytes -= len(files.get(name, b""))
            if problem and (signer or name in manifest.runtime_files):
                raise BundleError(problem)
            if problem:
                warnings.append(problem)
        return cls(path, manifest, files, tuple(warnings), content, signature, signer)

    def added(self) -> list[str]:
        """Return the sorted names of the bundle's files and folders that are not listed in the manifest.

        Names that begin with a dot are skipped, e.g. the virtual environment that the README creates.
        """
        return sorted(_added(self.path, {MANIFEST, SIGNATURE, *self.manifest.files}))

    def copy(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Copy the bundle to another folder or .zip file. Files that the manifest does not list are not copied.

        Raises:
            OutputExistsError: ``path`` exists and ``overwrite`` is False.
        """
        path = checked_output(path, [self.path], suffixes=(".zip",), folder=True)
        refuse_existing(path, overwrite)
        content = self.manifest_content or self.manifest.to_json().encode()
        _write(path, _content(content, self.signature, self.files), overwrite)

    @staticmethod
    def exists_at(path: Path) -> bool:
        """Return whether ``path`` is a bundle (intact or damaged) that ``--overwrite`` may replace."""
        try:
            content = _reader(path)(MANIFEST, MAX_MANIFEST_BYTES)
            values = parse_json(content or b"")
        except (BundleError, ValueError):
            return False
        return isinstance(values, dict) and {"schema", "labels", "model", "files"} <= values.keys()

    @property
    def model(self) -> bytes:
        """Content of the bundle's .tflite file, or of an ensemble's first .tflite file."""
        return self.files[self.manifest.model]

    @staticmethod
    def write(
        path: str | Path,
        manifest: Manifest,
        files: Mapping[str, bytes],
        *,
        overwrite: bool = False,
        check: Callable[[Path], object] = bool,
        sign: Callable[[bytes], bytes] | None = None,
    ) -> Bundle:
        """Write a bundle atomically, as a .zip if ``path`` ends in ``.zip``, otherwise as a folder.

        Args:
            path: path of the bundle.
            manifest: manifest of the bundle; ``manifest.files`` is computed from ``files``.
            files: dictionary that maps relative paths to the contents of the files.
            overwrite: replace an existing bundle.
            check: function that is called with the path of a temporary copy of the bundle before the copy is renamed
                to ``path``. If the function raises an exception, an existing bundle is not replaced.
            sign: function that returns the signature of the manifest's content. If None, the bundle is not signed, and
                ``manifest.serial`` and ``manifest.signed_s`` are set to 0.

        Raises:
            OutputExistsError: ``path`` exists and ``overwrite`` is False.
            BundleError: the manifest is inconsistent, or a file name points outside the bundle.
        """
        path = checked_output(path, suffixes=(".zip",), folder=True)
        for name in files:
            _refuse_outside(path, name)
        manifest = replace(manifest, files={name: sha256(files[name]) for name in sorted(files)})
        if sign is None:
            manifest = replace(manifest, serial=0, signed_s=0)
        refuse_existing(path, overwrite)
        manifest.check(str(path))
        content = manifest.to_json().encode()
        signature = sign(content) if sign else None
        _write(path, _content(content, signature, files), overwrite, check)
        return Bundle(path, manifest, dict(files), (), content, signature)

    def replace_manifest(self, content: bytes, signature: bytes) -> None:
        """Replace the manifest and its signature on disk. Other files of the bundle are not changed.

        A .zip is replaced atomically. In a folder, each file is replaced atomically, and the old signature is deleted
        first. If this is interrupted, the folder is an intact bundle without a signature.

        Args:
            content: new content of manifest.json.
            signature: signature of ``content``.
        """
        path = real_path(self.path)
        if path.is_file():
            with replacing(path) as partial:
                _copy_zip(path, partial, {MANIFEST: content, SIGNATURE: signature})
            return
        (path / SIGNATURE).unlink(missing_ok=True)
        write_file(path / MANIFEST, content)
        write_file(path / SIGNATURE, signature)


def _content(manifest: bytes, signature: bytes | None, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the contents of all files of a bundle, keyed by file name."""
    reserved = {MANIFEST: manifest} | ({} if signature is None else {SIGNATURE: signature})
    return reserved | {name: content for name, content in files.items() if name not in (MANIFEST, SIGNATURE)}


def _check_signer(
    path: Path,
    content: bytes,
    signature: bytes | None,
    allowed_signers: str | Path,
    revoked_keys: str | Path | None,
) -> Signer:
    try:
        return check_signature(content, signature, allowed_signers, revoked_keys=revoked_keys, where=str(path))
    except RefusedSignatureError as error:
        raise SignatureError(error.problem, str(error)) from None


def _refuse_inside(path: Path, allowed_signers: str | Path) -> None:
    """Refuse a file of allowed signers inside the bundle, because a bundle must not decide who may sign it."""
    if "\0" in str(allowed_signers):
        return  # check_signature() reports that such a file cannot be read.
    if real_path(user_path(allowed_signers)).is_relative_to(real_path(path)):
        raise SignatureError(
            "unchecked",
            f"the allowed signers {allowed_signers} are inside the bundle, so anyone could add a key: use a file "
            "outside the bundle",
        )


def _write(path: Path, content: Mapping[str, bytes], overwrite: bool, check: Callable[[Path], object] = bool) -> None:
    if path.suffix.lower() == ".zip":
        with replacing(path) as partial:
            partial.write_bytes(_zip(content))
            check(partial)
        return
    with replacing_folder(path, overwrite=overwrite) as partial:
        for name, data in content.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(data)
        check(partial)


def _read_listed(read: Reader, max_bytes: int, path: Path, name: str, digest: str, files: dict[str, bytes]) -> str:
    """Add a file's content to ``files``, and return an error message if the file is missing or damaged."""
    content = read(name, max_bytes)
    if content is None:
        return f"{path}: {name} is missing: copy or export the bundle again"
    files[name] = content
    if sha256(content) != digest:
        return (
            f"{path}: {name} was changed or damaged (its SHA-256 differs from the manifest): "
            "copy or export the bundle again"
        )
    return ""


def _added(path: Path, listed: set[str]) -> set[str]:
    """Return the names of files that the manifest does not list. A folder without listed files is a single entry."""
    folders = {str(parent) for name in listed for parent in PurePosixPath(name).parents}
    if path.is_file():
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        prefix = _zip_prefix(names)
        present = [name.removeprefix(prefix) for name in names if name.startswith(prefix) and not name.endswith("/")]
        present += [name for name in names if not name.startswith(prefix)]
    else:
        present = [
            (PurePosixPath(folder) / entry.name).as_posix() + ("/" if entry.is_dir() else "")
            for folder in folders
            if (path / folder).is_dir()
            for entry in (path / folder).iterdir()
        ]
    added = set()
    for name in present:
        file = PurePosixPath(name)
        parents = [str(parent) for parent in file.parents][-2::-1]  # outermost first, without "."
        outermost = next((f"{parent}/" for parent in parents if parent not in folders), name)
        if name.rstrip("/") not in listed | folders and not PurePosixPath(outermost).name.startswith("."):
            added.add(outermost)
    return added


def _refuse_outside(path: Path, name: str) -> None:
    """Raise :class:`BundleError` if a relative path could point outside the bundle on any operating system."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or _INVALID_PATH_CHARACTERS.search(name):
        raise BundleError(
            f"{path}: the path {name!r} points outside the bundle: do not use this bundle, it may be malicious"
        )


def _reader(path: Path) -> Reader:
    return _zip_reader(path) if path.is_file() else _folder_reader(path)


def _folder_reader(path: Path) -> Reader:
    if not path.exists():
        raise BundleError(
            f"{path} does not exist; expected a bundle's folder or .zip file. Create a bundle with edgerec export"
        )
    root = os.path.realpath(path)

    def read(name: str, max_bytes: int) -> bytes | None:
        try:
            file = Path(os.path.realpath(path / name))  # Path.resolve raises RuntimeError for symlink loops.
            if not file.is_relative_to(root):
                raise BundleError(
                    f"{path}: {name} is a link to a file outside the bundle: do not use this bundle, it may be "
                    "malicious"
                )
            if not file.is_file():
                return None
            check_file_size(path, name, file.stat().st_size, max_bytes)
            return read_at_most(file, max_bytes)
        except OSError as error:
            raise BundleError(
                f"{path}: the file {name} cannot be read ({error.strerror}): check its permissions"
            ) from None

    return read


def _zip_reader(path: Path) -> Reader:
    try:
        archive = open_zip(read_at_most(path, bundle_size.MAX_BUNDLE_BYTES), bundle_size.MAX_BUNDLE_BYTES)
    except UnpackedSizeError as error:
        raise BundleError(
            f"{path} is not a bundle, because {error}: do not use this file, it may be malicious"
        ) from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        kind = describe_file(path) or "is neither a folder nor a .zip"
        raise BundleError(f"{path} is not a bundle: it {kind}. Create a bundle with edgerec export") from None
    prefix = _zip_prefix(archive.namelist())

    def read(name: str, max_bytes: int) -> bytes | None:
        try:
            info = archive.getinfo(prefix + name)
        except KeyError:
            return None
        if stat.S_ISLNK(info.external_attr >> 16):
            raise BundleError(
                f"{path}: {name} is a symbolic link, which is not allowed in a bundle: do not use this bundle"
            )
        check_file_size(path, name, info.file_size, max_bytes)
        try:
            return archive.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError, LZMAError) as error:
            raise BundleError(f"{path}: the file {name} cannot be unpacked ({error}): copy the bundle again") from None

    return read


def _zip_prefix(names: Sequence[str]) -> str:
    """Return the folder in a .zip file that contains the bundle, or an empty string for the top level."""
    manifests = [name for name in names if PurePosixPath(name).name == MANIFEST and name.count("/") <= 1]
    return manifests[0].removesuffix(MANIFEST) if manifests else ""


def _zip(content: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(_zip_info(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _zip_info(name: str) -> zipfile.ZipInfo:
    """Return the metadata of a file in a .zip. A fixed modification time makes the .zip reproducible."""
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))


def _copy_zip(path: Path, copy: Path, changes: Mapping[str, bytes]) -> None:
    """Copy a bundle's .zip file, and replace or add the files in ``changes``."""
    limit_bytes = bundle_size.MAX_BUNDLE_BYTES
    with open_zip(read_at_most(path, limit_bytes), limit_bytes) as source, zipfile.ZipFile(copy, "w") as archive:
        prefix = _zip_prefix(source.namelist())
        changed = {prefix + name: content for name, content in changes.items()}
        for name, content in changed.items():
            archive.writestr(_zip_info(name), content, zipfile.ZIP_DEFLATED)
        for info in source.infolist():
            if info.filename not in changed:
                archive.writestr(info, source.read(info))
