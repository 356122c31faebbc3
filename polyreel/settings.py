"""All settings, built once at the entrance of a process and passed on as an argument.

Where their values come from, and in which order, is `polyreel.profiles`.
"""

from __future__ import annotations

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from polyreel.addresses import AllowList
from polyreel.catalogue import Catalogue
from polyreel.entries import Adapter, ServedModel
from polyreel.scheduling import Rule
from polyreel.secret_files import webhook_secret_bytes

#: Longest API key, characters: longer texts are refused unread.
MAX_KEY = 4096

_KEY = re.compile(r"[!-+\--~][ !-+\--~]{14,}[!-+\--~]")  # 16 or more printable ASCII characters, no comma


def default_state_dir() -> Path:
    """Return the folder for queue, checkpoints and results when none is set (the XDG state folder)."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "polyreel"


class Scheduling(BaseModel):
    """How a worker chooses between models that have work; `docs/scheduling.md` explains it.

    Args:
        quantum_swaps: for how many times the loading time of another model a worker stays with the one that it runs.
        max_wait_s: a model whose next job has waited longer than this may interrupt after that, seconds.
        grace_swaps: for how many loading times a model that another worker has in memory is left to that one.
        peer_factor: how much longer than `max_wait_s` such a model waits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    quantum_swaps: Annotated[float, Field(ge=0)] = 20.0
    max_wait_s: Annotated[float, Field(ge=0)] = 300.0
    grace_swaps: Annotated[float, Field(ge=0)] = 1.5
    peer_factor: Annotated[float, Field(ge=1)] = 2.0

    def rule(self) -> Rule:
        """Return what the claim goes by."""
        return Rule(**self.model_dump())


class S3(BaseModel):
    """How a bucket named by `storage: s3://bucket/prefix` is reached.

    Args:
        endpoint: of the service, such as `http://seaweedfs:8333`; None is AWS itself.
        public_endpoint: where clients reach the same service, for the links that they are given; None is `endpoint`.
        region: of the bucket; services of one's own take any.
        access_key_id, secret_access_key: None takes AWS's own variables or the machine's role.
        path_style: write `endpoint/bucket/key`, as most services of one's own want, not `bucket.endpoint/key`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    endpoint: str | None = None
    public_endpoint: str | None = None
    region: str = "us-east-1"
    access_key_id: SecretStr | None = None
    secret_access_key: SecretStr | None = None
    path_style: bool = True


class Settings(BaseSettings):
    """Every setting. `make docs` writes the tables of `docs/settings.md` from what stands here.

    Args:
        api_keys: owner name to key; from text as `name:key,name:key`, split at the first colon; each key is 16 to 4096
            printable characters without a comma. Without any, a key is made on loopback. Keys with scopes, limits and
            an end are made by `polyreel keys create`, see `docs/security.md`.
        public_url: absolute base of the links in answers; None takes the request's own Host.
        redis_url: Redis or Valkey to use; None starts an embedded Valkey in `state_dir`.
        state_dir: folder for the embedded queue, tiny checkpoints, local results and secrets.
        storage: URL of the result storage, `file:///folder` or `s3://bucket/prefix`; None is the folder `results` in
            `state_dir`.
        s3: how the bucket is reached.
        spool_s: how long a worker keeps trying to store a finished file while the storage is away, seconds; the video
            is not made again for that.
        min_free_mb: free space of `state_dir` and of a local storage below which no new jobs are taken, 1e6 bytes.
        disk_quota_gb: results that a local storage holds at most, 1e9 bytes: beyond it the oldest ended jobs go before
            their retention is over. None for no limit.
        webhook_allow: hosts and CIDRs that webhooks and links to pictures may reach although they are not public, over
            http too and on any port: "10.0.0.0/8", "hooks.internal", "hooks.internal:8080".
        outbound_http: webhooks and links to pictures may use plain http on port 80 to public addresses too; without it
            https on port 443.
        webhook_secrets: `whsec_…` secrets from which each owner's own is derived; the first signs, the others sign too
            while receivers change over. None makes one, in Redis for all machines.
        admins: owners whose configured keys may manage the server (`alice,bob`); the key made on first start always
            may.
        key_pepper: keys the hashes of API keys; None makes one, in Redis for all machines.
        trusted_proxies: addresses and networks whose X-Forwarded-For and X-Forwarded-Proto are believed; nothing is
            none, and then links follow `public_url` or the Host header alone: `10.0.0.2,172.18.0.0/16`, see
            `docs/security.md`.
        cors_origins: web pages that may call the API from a browser; "*" is any (keys are never sent by themselves, as
            cookies are, so a page must have one), nothing is none.
        host: where the API listens; beyond loopback there must be a key, configured or made by `polyreel keys create`.
        port: likewise; 0 takes a free one.
        link_secret: signs result links; None makes one, in Redis for all machines.
        old_link_secrets: those that signed before: links that clients have stay good until they expire.
        models: the catalogue: what is served, from which checkpoint, within which limits, under which names; see
            `docs/models.md`.
        loras, embeddings: LoRAs and textual inversions that requests may name, see `docs/models.md`.
        dialects: each dialect's own settings, by dialect name; checked by the dialect itself.
        device: torch device of the worker; "auto" is "cuda" if there is one, else "cpu".
        gpus: GPUs that workers run on, a process for each: "all", "none", or indices as `nvidia-smi -L` counts them or
            UUIDs, joined by commas.
        workers: worker processes per GPU; where there is none, worker processes in all.
        threads: CPU threads of torch and of the encoders in a worker; file bytes depend on it. One is fastest for tiny
            checkpoints on a busy machine (two OpenMP threads on two busy cores ran 20 times slower).
        resident_models: models that a worker keeps loaded at most, while they fit; the least recently used goes first.
        resident_loras_mb: LoRAs that stay loaded beside one model at most, 1e6 bytes; the least recently used go.
        file_metadata: write what is needed to make the same video again (prompt, seed, settings, versions) into it.
        max_queued: unfinished jobs in all before new ones are refused (429).
        max_body_bytes: longest request body that is read; routes that take pictures read 20 MiB.
        max_queued_per_key: unfinished jobs of one API key before it is refused new ones, for keys that were made
            without a number of their own; None for no limit.
        lease_s: how long a worker keeps a job without renewing its claim, seconds; it renews every quarter of that. A
            machine that dies is noticed after 1 to 1.25 of it, see `docs/operations.md`.
        scheduling: how a worker chooses between models that have work, see `docs/scheduling.md`.
        retention_s: how long a finished job is readable, its files are kept and their links good, seconds.
        job_timeout_s: longest time that one attempt may run, seconds.
        unavailable_after_s: how long a job waits for a worker that can load its model before one that cannot fails it
            with the reason, seconds.
        resume_after_s: a job that is expected to take this long, or of which nobody knows how long it takes, runs alone
            and is saved on the way, so that another worker continues it after a crash, seconds; `.inf` saves none.
        resume_every: denoising steps between two such snapshots.
        previews: workers show a small picture of what they denoise, to the job's owner alone, at most twice a second;
            see `docs/models.md`.
        drain_s: how long a stopping worker may finish its job, seconds; after that the job is handed back.
        content_policy: name of an entry point in the group `polyreel.content_policies` that sees prompts and sampled
            frames and may refuse them; None is no policy.
        web_page: serve the page at `/` and the API reference at `/docs`.
        log_prompts: prompts may stand in the log, where a job is submitted.
        log_level: "debug", "info", "warning" or "error".
    """

    model_config = SettingsConfigDict(
        env_prefix="POLYREEL_",
        env_nested_delimiter="__",
        env_ignore_empty=True,  # compose passes VAR="" for a variable that is not set
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    api_keys: Annotated[dict[str, SecretStr], NoDecode] = {}
    public_url: str | None = None
    redis_url: SecretStr | None = Field(None, validation_alias=AliasChoices("redis_url", "REDIS_URL"))
    state_dir: Path = Field(default_factory=default_state_dir)
    storage: str | None = None
    s3: S3 = S3()
    spool_s: Annotated[float, Field(ge=0)] = 600.0
    min_free_mb: Annotated[float, Field(ge=0)] = 200.0
    disk_quota_gb: Annotated[float, Field(gt=0)] | None = None
    webhook_allow: Annotated[tuple[str, ...], NoDecode] = ()
    outbound_http: bool = False
    webhook_secrets: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    admins: Annotated[tuple[str, ...], NoDecode] = ()
    key_pepper: SecretStr | None = None
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ("*",)
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    link_secret: SecretStr | None = None
    old_link_secrets: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    models: dict[str, ServedModel] = {}
    loras: dict[str, Adapter] = {}
    embeddings: dict[str, Adapter] = {}
    dialects: dict[str, dict[str, Any]] = {}  # Any: each dialect validates its own
    device: str = "auto"
    gpus: str = "all"
    workers: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] = 1
    resident_models: Annotated[int, Field(ge=1)] = 1
    resident_loras_mb: Annotated[float, Field(ge=0)] = 2000.0
    file_metadata: bool = True
    max_queued: Annotated[int, Field(ge=1)] = 1000
    max_queued_per_key: Annotated[int, Field(ge=1)] | None = None
    lease_s: Annotated[float, Field(ge=0.4)] = 20.0
    scheduling: Scheduling = Scheduling()
    max_body_bytes: Annotated[int, Field(ge=1024)] = 2**20
    retention_s: Annotated[float, Field(gt=0)] = 7 * 86400.0
    job_timeout_s: Annotated[int, Field(ge=1)] = 3600
    unavailable_after_s: Annotated[float, Field(ge=0)] = 300.0
    resume_after_s: Annotated[float, Field(ge=0)] = 120.0
    resume_every: Annotated[int, Field(ge=1)] = 5
    previews: bool = True
    drain_s: Annotated[float, Field(ge=0)] = 30.0
    content_policy: str | None = None
    web_page: bool = True
    log_prompts: bool = False
    log_level: str = "info"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the values as given: `load_settings` reads the sources itself, to know where each came from."""
        return (init_settings,)

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        keys: dict[str, str] = {}
        for pair in filter(None, (part.strip() for part in value.split(","))):
            name, colon, key = pair.partition(":")
            if not colon or not name.strip():
                raise ValueError("write name:key,name:key (a name, a colon, the key)")
            if name.strip() in keys:
                raise ValueError(f"the name {name.strip()!r} comes twice")
            keys[name.strip()] = key.strip()
        return keys

    @field_validator("api_keys")
    @classmethod
    def _keys_are_long_enough(cls, keys: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, key in keys.items():
            if not _KEY.fullmatch(key.get_secret_value()):
                raise ValueError(f"the key of {name!r} must be 16 or more printable characters without a comma")
            if len(key.get_secret_value()) > MAX_KEY:
                raise ValueError(f"the key of {name!r} must be at most {MAX_KEY} characters")
        if len({key.get_secret_value() for key in keys.values()}) < len(keys):
            raise ValueError("two names share one key; every owner needs a key of its own")
        return keys

    @field_validator(
        "webhook_allow",
        "old_link_secrets",
        "webhook_secrets",
        "admins",
        "trusted_proxies",
        "cors_origins",
        mode="before",
    )
    @classmethod
    def _split_list(cls, value: object) -> object:
        return tuple(filter(None, (part.strip() for part in value.split(",")))) if isinstance(value, str) else value

    @field_validator("webhook_secrets")
    @classmethod
    def _are_webhook_secrets(cls, secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for secret in secrets:
            webhook_secret_bytes(secret.get_secret_value())
        return secrets

    @field_validator("webhook_allow")
    @classmethod
    def _are_hosts_and_networks(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        AllowList.read(entries)
        return entries

    @field_validator("key_pepper")
    @classmethod
    def _is_long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("must be 16 or more characters that nobody can guess")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            try:
                ip_network(entry)
            except ValueError:
                raise ValueError(f"{entry}: write an address or a network (10.0.0.2, 10.0.0.0/8)") from None
        return entries

    @field_validator("public_url")
    @classmethod
    def _absolute_without_slash(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/\s?#]+(/[^\s?#]*)?", value):
            raise ValueError("write an absolute address such as https://video.example.com")
        return value.rstrip("/") if value else None

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError("use auto, cpu, mps, cuda or cuda:N")
        return value

    @field_validator("gpus", mode="before")
    @classmethod
    def _are_gpus(cls, value: object) -> object:
        words = value if isinstance(value, list) else str(value).split(",")  # YAML: 0, [0, 1], or text
        names = [str(word).strip() for word in words]
        listed = bool(names) and all(re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", name) for name in names)
        if names not in (["all"], ["none"]) and not listed:
            raise ValueError("use all, none, or GPUs as nvidia-smi -L lists them: indices or UUIDs, 0,1,3")
        if len(set(names)) < len(names):
            raise ValueError("a GPU comes twice; `workers` starts several processes on each")
        return ",".join(names)

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value not in ("debug", "info", "warning", "error"):
            raise ValueError("use debug, info, warning or error")
        return value

    @property
    def catalogue(self) -> Catalogue:
        """The models, LoRAs and embeddings, looked up by name.

        Raises:
            ConfigurationError: an entry refers to one that does not exist, or a name means two.
        """
        return Catalogue(self.models, self.loras, self.embeddings)

    @property
    def storage_url(self) -> str:
        """The storage URL, with the local default filled in."""
        return self.storage or (self.state_dir / "results").resolve().as_uri()  # escapes "#", "%" and "?"
