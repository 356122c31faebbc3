"""Results in a bucket of any service that speaks S3: `s3://bucket/prefix`. AWS, SeaweedFS, MinIO, Ceph, R2 and others.

Speaks through obstore. Every request is short, so a service that hangs costs `_REQUEST_S` seconds and no more: large
files go up in parts and come down in ranges. What is tried again here is only what failed at once; for longer, callers
do (`workers.uploads`).

Clients get links that are signed for the public endpoint (`Storage.url`), and fetch the bytes from the service itself.
"""

from __future__ import annotations

import io
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

import structlog

from polyreel.errors import ConfigurationError, StorageAway, StorageFailed, StorageFull
from polyreel.formats import media_type_of
from polyreel.settings import S3
from polyreel.storage import FOLDERS, Storage, check_key, is_ours

if TYPE_CHECKING:
    from obstore.store import S3Store

log = structlog.get_logger()

#: How long one request may take, its body included, and until when a request that failed is sent again, seconds: a
#: try ends within the sum, whatever the service does.
_REQUEST_S, _AGAIN_S = 8.0, 1.5

_CONNECT_S = 3.0

#: What one request carries of a file, bytes: S3's own smallest part. It passes in `_REQUEST_S` at 5 Mbit/s.
_PART = 5 * 2**20

#: Parts that go up at the same time; more would share one slow line and all be late.
_PARTS_AT_ONCE = 2

#: S3 signs no link for longer.
MOST_LINK_S = 7 * 86400.0

#: Names of buckets. Source: docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*)?")

_CREDENTIALS = "s3.access_key_id and s3.secret_access_key (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"

_NO_BUCKET = "the S3 service has no such bucket; make it, or name another one in `storage`"

#: The service's words for what is wrong (a pattern), and what the operator is told, where "{}" is the word; the first
#: match wins. Nearly all may be put right while we wait, so they are `StorageAway`.
_SAID: tuple[tuple[str, type[StorageFailed], str], ...] = (
    ("no answer", StorageAway, "the S3 service does not answer; check s3.endpoint"),
    ("no credentials", StorageAway, f"no credentials for S3 were found; set {_CREDENTIALS}"),
    ("NoSuchBucket|404", StorageAway, _NO_BUCKET),
    (
        "InvalidAccessKeyId|SignatureDoesNotMatch",
        StorageAway,
        f"the S3 service refuses the credentials ({{}}); check {_CREDENTIALS}",
    ),
    (
        "ExpiredToken|InvalidToken|TokenRefreshRequired",
        StorageAway,
        "the S3 service refuses the session credentials ({}); renew AWS_SESSION_TOKEN",
    ),
    ("RequestTimeTooSkewed", StorageAway, "the S3 service says that this machine's clock is wrong"),
    (
        "AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocationConstraintException|301",
        StorageAway,
        "the bucket is in another region ({}); set s3.region",
    ),
    ("QuotaExceeded|\\w*StorageFull|InsufficientStorage|507", StorageFull, "the S3 service has no space left ({})"),
    (
        "AccessDenied|AllAccessDisabled|401|403",
        StorageAway,
        f"the S3 service does not allow it ({{}}); check {_CREDENTIALS} and what their owner may",
    ),
    (".*", StorageAway, "the S3 service answers {}; check s3.endpoint"),
)


@dataclass(frozen=True)
class S3Storage:
    """Objects in one bucket, under one prefix; an object appears complete or not at all.

    Args:
        store: for what we do ourselves.
        public: signs links, on the endpoint that clients reach.
    """

    store: S3Store
    public: S3Store

    def put(self, source: Path, key: str) -> None:
        """Send the file: small ones in one request, others in parts that become one object when all are there."""
        import obstore

        check_key(key)
        attributes: Any = {  # Any: obstore's own names of headers, and no others, are typed
            "Content-Type": media_type_of(key),
            "Content-Disposition": "inline",
            "Cache-Control": "private, max-age=3600",
        }
        try:
            with source.open("rb") as file:
                head = file.read(_PART + 1)
                with _our_errors("put", key):
                    if len(head) <= _PART:
                        obstore.put(self.store, key, head, attributes=attributes, use_multipart=False)
                        return
                    file.seek(0)
                    obstore.put(
                        self.store,
                        key,
                        file,
                        attributes=attributes,
                        use_multipart=True,
                        chunk_size=_PART,
                        max_concurrency=_PARTS_AT_ONCE,
                    )
        except OSError as err:  # of the source
            raise StorageFailed(f"The result could not be stored: {err.strerror}.") from err

    def size(self, key: str) -> int | None:
        """Return bytes, or None when there is no such object."""
        import obstore

        check_key(key)
        with _our_errors("size", key):
            try:
                return int(obstore.head(self.store, key)["size"])
            except FileNotFoundError:
                return None

    def open(self, key: str) -> BinaryIO:
        """Open for reading; each read fetches what it asks for, in ranges."""
        size = self.size(key)
        if size is None:
            raise StorageFailed("No such file.")
        return io.BufferedReader(_Object(self.store, key, size), _PART)

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""
        self._remove([check_key(key)])

    def delete_folder(self, folder: str) -> int:
        """Remove our objects under the folder."""
        return self._remove([key for key, _ in self._ours(check_key(folder))])

    def folders(self, folder: str, before: float) -> list[str]:
        """Return the names of folders without a newer object."""
        newest: dict[str, float] = {}
        for key, stored_at in self._ours(folder):
            name = key.split("/")[1]
            newest[name] = max(newest.get(name, stored_at), stored_at)
        return [name for name, stored_at in newest.items() if stored_at < before]

    def sweep(self, before: float) -> int:
        """Remove old objects of ours: a rule of the bucket knows neither our names nor each server's retention."""
        old = [key for folder in FOLDERS for key, stored_at in self._ours(folder) if stored_at < before]
        return self._remove(old)

    def _ours(self, folder: str) -> Iterator[tuple[str, float]]:
        """Yield key and time of storing of what lies under a folder and has a name that we make."""
        import obstore

        with _our_errors("list", folder):
            for page in obstore.list(self.store, folder):
                for found in page:
                    if is_ours(found["path"]) and "/" in found["path"]:
                        yield found["path"], found["last_modified"].timestamp()

    def _remove(self, keys: list[str]) -> int:
        import obstore

        with _our_errors("delete", keys[0] if keys else ""):
            if keys:
                obstore.delete(self.store, keys)
        return len(keys)

    def url(self, key: str, expires_at: float) -> str | None:
        """Return a link for GET, signed here: nothing is asked of the service."""
        import obstore

        left_s = min(max(1.0, expires_at - time.time()), MOST_LINK_S)
        with _our_errors("sign", key):
            return obstore.sign(self.public, "GET", check_key(key), timedelta(seconds=int(left_s)))

    def free_bytes(self) -> int | None:
        """Return None: a bucket has no end that anybody could ask for."""
        return None

    def check(self) -> None:
        """Put, get and delete an object beside the results."""
        import obstore

        key, content = f"probe/{uuid.uuid4().hex}", datetime.now(UTC).isoformat().encode()
        with _our_errors("check", key):
            obstore.put(self.store, key, content, use_multipart=False)
            read = bytes(obstore.get_range(self.store, key, start=0, length=len(content)))
            obstore.delete(self.store, key)
        if read != content:
            raise StorageAway("storage: the S3 service gives back something else than was written.")


class _Object(io.RawIOBase):
    """An object that is read in ranges, each of one request.

    Args:
        store: of the bucket.
        key: of an object that is there.
        size: its length, bytes.
    """

    def __init__(self, store: S3Store, key: str, size: int) -> None:
        self._store = store
        self._key = key
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"position {start + offset} before the beginning")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:  # Any: typing has no name for a writable buffer in Python 3.11
        content = self._next(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self._next(_PART), b""))

    def _next(self, most: int) -> bytes:
        import obstore

        length = min(most, _PART, self._size - self._at)
        if length <= 0:
            return b""
        with _our_errors("get", self._key):
            try:
                content = bytes(obstore.get_range(self._store, self._key, start=self._at, length=length))
            except FileNotFoundError:
                raise StorageFailed("No such file.") from None  # it was removed since it was opened
        self._at += len(content)
        return content


@contextmanager
def _our_errors(what: str, key: str) -> Iterator[None]:
    """Turn whatever obstore raises into `StorageAway` or `StorageFull`, and tell the operator what it was."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, FileNotFoundError) as err:
        text = str(err).partition("\n\nDebug source")[0]
        word = _word(text)
        kind, message = next((kind, said) for words, kind, said in _SAID if re.fullmatch(words, word))
        log.warning("s3 failed", doing=what, key=key, reason=text[:500])
        raise kind(f"storage: {message.replace('{}', word)}.") from err


def _word(text: str) -> str:
    """Return the service's own code for an error, else the HTTP status, else what we call it."""
    if "169.254.169.254" in text or "169.254.170" in text:  # where AWS hands out the credentials of a machine's role
        return "no credentials"
    for pattern in (r"<Code>(\w+)</Code>", r"status code: (\d{3})"):
        found = re.search(pattern, text)
        if found:
            return found[1]
    return "no answer"


class _S3Kind:
    name = "s3"

    def connect(self, url: str, s3: S3) -> Storage:
        parts = urlsplit(url)
        bucket, prefix = parts.netloc, parts.path.strip("/")
        if not _BUCKET.fullmatch(bucket) or not _PREFIX.fullmatch(prefix) or parts.query or parts.fragment:
            raise ConfigurationError(
                f"storage: {url!r} must name a bucket, with or without a prefix: s3://my-videos/polyreel. The endpoint "
                "is a setting of its own, s3.endpoint."
            )
        if (s3.access_key_id is None) is not (s3.secret_access_key is None):
            missing = "s3.secret_access_key" if s3.access_key_id else "s3.access_key_id"
            raise ConfigurationError(f"{missing}: set both s3.access_key_id and s3.secret_access_key, or neither.")
        for setting, endpoint in (("s3.endpoint", s3.endpoint), ("s3.public_endpoint", s3.public_endpoint)):
            if endpoint is not None and not re.fullmatch(r"https?://[^/\s?#]+/?", endpoint):
                raise ConfigurationError(
                    f"{setting}: {endpoint!r} must be the address of an S3 service without a path, such as "
                    "http://seaweedfs:8333 or https://s3.example.com."
                )
        if s3.access_key_id is None and os.environ.get("AWS_SESSION_TOKEN"):
            log.warning(
                "s3 credentials end by themselves",
                setting="AWS_SESSION_TOKEN",
                consequence="links to the bucket end with them, 36 hours at most, and so does storing; restart with "
                "new ones before, or use a key or a machine role",
            )
        return S3Storage(
            _store(bucket, prefix, s3, s3.endpoint), _store(bucket, prefix, s3, s3.public_endpoint or s3.endpoint)
        )


def _store(bucket: str, prefix: str, s3: S3, endpoint: str | None) -> S3Store:
    from obstore.store import S3Store

    options: dict[str, Any] = {"region": s3.region, "virtual_hosted_style_request": not s3.path_style}  # Any: obstore's
    if endpoint is not None:
        scheme, _, host = endpoint.rstrip("/").partition("://")
        options["endpoint"] = f"{scheme}://{host}" if s3.path_style else f"{scheme}://{bucket}.{host}"
    if s3.access_key_id is not None and s3.secret_access_key is not None:
        options["access_key_id"] = s3.access_key_id.get_secret_value()
        options["secret_access_key"] = s3.secret_access_key.get_secret_value()
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={
            "allow_http": True,  # an https:// endpoint stays https; whether http will do, its address says
            "connect_timeout": timedelta(seconds=_CONNECT_S),
            "timeout": timedelta(seconds=_REQUEST_S),
        },
        retry_config={
            "max_retries": 2,
            "retry_timeout": timedelta(seconds=_AGAIN_S),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=0.5), "base": 2},
        },
        **options,
    )


STORAGE = _S3Kind()
