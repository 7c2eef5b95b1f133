"""Published weight files, and resumable, verified downloads.

Sizes and checksums were taken from public records of users who downloaded the files; they are None if no
record was found.
"""

import dataclasses
import http.client
import json
import os
import pathlib
import shutil
import urllib.error
import urllib.parse
import urllib.request

from tqdm import tqdm

from l2l_jax.errors import UserError
from l2l_jax.utils.runtime import home
from l2l_jax.weights.reading import sha256

FOLDER_VARIABLE = "L2L_JAX_WEIGHTS"  # environment variable that names the folder of weights
CHUNK, TIMEOUT_SECONDS = 1 << 20, 60


def weights_folder() -> pathlib.Path:
    """Return the folder of weights: $L2L_JAX_WEIGHTS, or ~/.cache/l2l_jax/weights."""
    named = os.environ.get(FOLDER_VARIABLE)
    return pathlib.Path(os.path.expanduser(named)) if named else home() / ".cache/l2l_jax/weights"


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A published weight file."""

    name: str  # name on the command line
    holds: str  # description of the content
    file: str  # name in the weights folder
    url: str  # empty if the file can only be downloaded with a browser, from `page`
    page: str
    licence: str
    size: int | None = None
    sha256: str | None = None

    def size_in_words(self) -> str:
        """Describe the size, or state that it is unknown."""
        return "size not known" if self.size is None else f"{self.size / 1e6:,.1f} MB"


PUBLISHED = {
    row["name"]: PublishedFile(**row)
    for row in json.loads(pathlib.Path(__file__).with_suffix(".json").read_text("utf-8"))
}
"""Published files by name."""


def fetch(file: PublishedFile, folder: pathlib.Path) -> pathlib.Path:
    """Download a file, resuming an interrupted download, and print its size, license and SHA-256.

    Returns:
      The path in `folder`, which is created.

    Raises:
      UserError: The server is unreachable or refuses the request, the disk is full, or the downloaded file
        is not the published one.
    """
    target = folder / file.file
    if target.exists():
        _check(file, target)
        print(f"{target} already exists.")
        return target
    if not file.url:
        raise UserError(
            f"{file.holds} is published where only a browser can download it: {file.page}. Put the file into "
            f"{folder}, or name it on the command line."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made ({error.strerror}): name another folder with --folder, or in "
            f"{FOLDER_VARIABLE}."
        ) from error
    print(f"{file.holds}: {file.url}\n{file.size_in_words()}; license: {file.licence}")
    part = target.with_name(f"{target.name}.part")
    by_hand = (
        "Without a connection to the Internet, download it elsewhere, as with\n"
        f"    curl -L -o {file.file} '{file.url}'\n"
        f"and copy it here as {target}; any other place can be named on the command line."
    )
    try:
        _download(file, part)
    except urllib.error.HTTPError as error:
        raise UserError(f"{file.url} answers {error.code} {error.reason}. {by_hand}") from error
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "filename", None):
            raise  # a local disk error
        server, reason = urllib.parse.urlsplit(file.url).netloc, getattr(error, "reason", error)
        raise UserError(
            f"{server} cannot be reached, or closed the connection ({reason}). Rerun the command to resume. "
            f"{by_hand}"
        ) from error
    try:
        _check(file, part)
    except UserError:
        part.unlink()
        raise
    part.replace(target)
    return target


def _check(file: PublishedFile, path: pathlib.Path) -> None:
    size, digest = path.stat().st_size, sha256(path)
    print(f"{size:,} bytes, SHA-256 {digest}")
    if file.size not in (None, size) or file.sha256 not in (None, digest):
        expected = f"SHA-256 {file.sha256}" if file.sha256 else f"{file.size:,} bytes"
        raise UserError(
            f"{path} is not the published file: it should have {expected}. Delete it and rerun the command."
        )
    if file.sha256 is None:
        print("No checksum of this file is known: compare this one with that of other users.")


def _download(file: PublishedFile, part: pathlib.Path) -> None:
    """Download to `part`, appending to the bytes that it already holds."""
    done = part.stat().st_size if part.exists() else 0
    version = part.with_name(f"{part.name}.version")  # server's version of the partial file
    request = urllib.request.Request(file.url, headers={"User-Agent": "l2l_jax"})
    if done and version.exists():
        request.add_header("Range", f"bytes={done}-")
        request.add_header("If-Range", version.read_text("utf-8"))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not done:
            raise
        part.unlink()  # the partial file is at least as long as the file: start over
        return _download(file, part)
    with response:
        if response.headers.get_content_type() == "text/html":
            raise UserError(
                f"{file.url} sends a web page instead of a file; open {file.page} in a browser and download "
                f"it there, to {part.with_suffix('')}."
            )
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        if total is not None and shutil.disk_usage(part.parent).free < total - done:
            raise UserError(f"{part.parent} has no room for {total - done:,} bytes.")
        entity = response.headers.get("ETag") or response.headers.get("Last-Modified")
        version.unlink(missing_ok=True)
        if entity and not entity.startswith("W/"):
            version.write_text(entity, "utf-8")
        bar = tqdm(total=total, initial=done, unit="B", unit_scale=True, dynamic_ncols=True)
        with part.open("ab" if done else "wb") as out, bar:
            while chunk := response.read(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"{part.stat().st_size:,} of {total:,} bytes were received")
    version.unlink(missing_ok=True)
