"""Common misconfigurations, and what a message about each has to say; `test_misconfigurations.py` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Stands in a wrong value that must not be seen again.
SECRET = "correct-horse-battery"


@dataclass(frozen=True)
class Case:
    """One misconfiguration.

    Args:
        about: its name.
        words: of the command line after `polyreel`; {tmp} is the test's folder, {port} a port that is taken.
        setting: name that the message must have.
        value: wrong value that it must show; "" for a secret, which it must not.
        fix: what it must say to do.
        yaml: of the file my.yaml, which is then given as --config; on top of the profile tiny.
        environment: variables.
    """

    about: str
    words: str
    setting: str
    value: str
    fix: str
    yaml: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def env(**values: str) -> Mapping[str, str]:
    return {f"POLYREEL_{name}": value for name, value in values.items()}


REDIS = {"REDIS_URL": "redis://127.0.0.1:1/0"}

CASES = [
    # The file
    Case("YAML that does not parse", "up", "--config", "my.yaml", "config check", "host: a\nport: [1\n"),
    Case("a file that is not there", "up --config {tmp}/no.yaml", "--config", "no.yaml", "shipped profiles: gpu, team"),
    Case("a misspelt profile", "up --config tinny", "--config", "tinny", "Did you mean tiny?"),
    Case("a profile that extends itself", "up", "--config", "my.yaml", "extends:", "extends: {tmp}/my.yaml"),
    Case("a list instead of settings", "up", "--config", "my.yaml", "mapping", "- port: 1"),
    # Names
    Case("an unknown setting", "up", "prot", "prot", "Did you mean port?", "prot: 8001"),
    Case("an unknown part of one", "up", "s3.buckt", "s3.buckt", "no such setting", "s3: {buckt: a}"),
    Case(
        "a misspelt variable", "up", "POLYREEL_PROT", "POLYREEL_PROT", "Did you mean POLYREEL_PORT?", "", env(PROT="1")
    ),
    Case(
        "REDIS_URL with our prefix",
        "up",
        "POLYREEL_REDIS_URL",
        "",
        "Did you mean REDIS_URL?",
        "",
        env(REDIS_URL=SECRET),
    ),
    # Simple values
    Case("a port in words", "up", "port", "eighty", "whole number", "", env(PORT="eighty")),
    Case("a port that is none", "up --port 70000", "port", "70000", "65535 or less"),
    Case("no workers at all", "up --workers 0", "workers", "0", "1 or more"),
    Case("an unknown log level", "up", "log_level", "verbose", "use debug, info", "", env(LOG_LEVEL="verbose")),
    Case("a switch in other words", "up", "previews", "perhaps", "true or false", "previews: perhaps"),
    Case("a time below nothing", "up", "drain_s", "-5", "0 or more", "drain_s: -5"),
    Case(
        "a public address without http",
        "up",
        "public_url",
        "video.example.com",
        "https://",
        "public_url: video.example.com",
    ),
    Case(
        "a network that is none",
        "up",
        "trusted_proxies",
        "10.0.0.0/33",
        "10.0.0.0/8",
        "",
        env(TRUSTED_PROXIES="10.0.0.0/33"),
    ),
    Case(
        "an allowed host that is none",
        "up",
        "webhook_allow",
        "http://hooks",
        "hooks.internal",
        "",
        env(WEBHOOK_ALLOW="http://hooks"),
    ),
    Case("a variable that is no JSON", "up", "dialects", "dialects", "JSON", "", env(DIALECTS="{ holds")),
    # Secrets
    Case("a short key", "up", "api_keys", "", "16 or more", "", env(API_KEYS="alice:battery")),
    Case("a key without a name", "up", "api_keys", "", "name:key", "", env(API_KEYS=SECRET)),
    Case(
        "an owner twice",
        "up",
        "api_keys",
        "",
        "'alice' comes twice",
        "",
        env(API_KEYS=f"alice:{SECRET},alice:{SECRET}2"),
    ),
    Case(
        "one key for two owners",
        "up",
        "api_keys",
        "",
        "a key of its own",
        "",
        env(API_KEYS=f"alice:{SECRET},bob:{SECRET}"),
    ),
    Case(
        "a webhook secret that is none",
        "up",
        "webhook_secrets",
        "",
        "openssl rand -base64 32",
        "",
        env(WEBHOOK_SECRETS=SECRET),
    ),
    Case("a short pepper", "up", "key_pepper", "", "16 or more", "", env(KEY_PEPPER="battery")),
    Case("an address that is no Redis", "up", "redis_url", "", "redis://", "", {"REDIS_URL": f"http://:{SECRET}@host"}),
    # Devices
    Case("an unknown device", "up", "device", "gpu", "cuda", "", env(DEVICE="gpu")),
    Case("a GPU that is not here", "up --gpus 7", "gpus", "7", "nvidia-smi lists", "device: auto"),
    Case("GPUs in other words", "up --gpus some", "gpus", "some", "all, none"),
    Case("a GPU for who has none", "up --gpus none", "gpus", "none", "Change either", "device: cuda"),
    # The catalogue
    Case(
        "an entry without a checkpoint",
        "up",
        "models.a.checkpoint",
        "models.a",
        "missing",
        "models: {a: {family: ltx}}",
    ),
    Case(
        "an unknown family",
        "config check",
        "models.a.family",
        "ltxx",
        "Did you mean ltx?",
        "models: {a: {family: ltxx, checkpoint: 'tiny:ltx'}}",
    ),
    Case(
        "one name for two entries",
        "config check",
        "models.b.names.modelslab",
        "x1",
        "take it out of one",
        "models: {a: {family: ltx, checkpoint: 'tiny:ltx', names: {modelslab: [x1]}},"
        " b: {family: ltx, checkpoint: 'tiny:ltx', names: {modelslab: [x1]}}}",
    ),
    Case(
        "an adapter for no model",
        "config check",
        "loras.l.models",
        "ltx-tinny",
        "Did you mean ltx-tiny",
        "loras: {l: {checkpoint: 'tiny:lora', models: [ltx-tinny]}}",
    ),
    Case(
        "a default over its limit",
        "config check",
        "models.a",
        "num_frames",
        "limits.num_frames",
        "models: {a: {family: ltx, checkpoint: 'tiny:ltx', limits: {num_frames: 9}, defaults: {num_frames: 17}}}",
    ),
    Case(
        "more pins than places",
        "config check",
        "resident_models",
        "1",
        "pinned",
        "resident_models: 1\nmodels: {a: {family: ltx, checkpoint: 'tiny:ltx', pinned: true}}",
    ),
    Case(
        "an unknown content policy",
        "config check",
        "content_policy",
        "strict",
        "Install the package",
        "content_policy: strict",
    ),
    # Dialects
    Case(
        "an unknown dialect",
        "config check",
        "dialects.modelslb",
        "modelslb",
        "Did you mean modelslab?",
        "dialects: {modelslb: {}}",
    ),
    Case(
        "an unknown setting of one",
        "config check",
        "dialects.modelslab.hold",
        "hold",
        "Did you mean hold_s?",
        "dialects: {modelslab: {hold: 1}}",
    ),
    Case(
        "a model that it does not have",
        "config check",
        "dialects.universal.endpoint_model",
        "flux",
        "is not a model",
        "dialects: {universal: {endpoint_model: flux}}",
    ),
    # Where things are
    Case("an unknown storage", "config check", "storage", "fil", "Did you mean file?", "", env(STORAGE="fil:///tmp/x")),
    Case("a storage without a scheme", "config check", "storage", "results", "file:///", "", env(STORAGE="results")),
    Case(
        "a storage in no folder",
        "config check",
        "storage",
        "file://results",
        "file:///",
        "",
        env(STORAGE="file://results"),
    ),
    Case("a bucket without a name", "config check", "storage", "s3://", "s3://my-videos", "", env(STORAGE="s3://")),
    Case("a state folder that cannot be", "up --state-dir /proc/nowhere", "state_dir", "/proc/nowhere", "--state-dir"),
    Case("a state folder that is a file", "up --state-dir {tmp}/file", "state_dir", "{tmp}/file", "--state-dir"),
    Case("a state folder that is in use", "up --state-dir {tmp}/used", "state_dir", "{tmp}/used", "Stop it"),
    # The API
    Case("no Redis for the API", "serve", "redis_url", "", "REDIS_URL"),
    Case("no Redis for workers", "worker --supervise", "redis_url", "", "REDIS_URL"),
    Case("a port that is taken", "serve --port {port}", "port", "{port}", "--port PORT", "", REDIS),
    Case("a host of nobody", "serve --host nowhere.invalid", "host", "nowhere.invalid", "--host 127.0.0.1", "", REDIS),
    Case(
        "no key for other machines",
        "serve --host 0.0.0.0 --port 0",
        "api_keys",
        "0.0.0.0",
        "polyreel keys create",
        "",
        {},
    ),
    Case(
        "an administrator without a key",
        "serve --port 0",
        "admins",
        "carol",
        "polyreel keys create",
        "",
        REDIS | env(ADMINS="carol"),
    ),
    # The worker
    Case(
        "an ffmpeg that is none",
        "worker",
        "IMAGEIO_FFMPEG_EXE",
        "/nowhere/ffmpeg",
        "Unset it",
        "",
        REDIS | {"IMAGEIO_FFMPEG_EXE": "/nowhere/ffmpeg"},
    ),
    Case(
        "an ffmpeg that does not run",
        "worker",
        "IMAGEIO_FFMPEG_EXE",
        "/bin/false",
        "/usr/bin/ffmpeg",
        "",
        REDIS | {"IMAGEIO_FFMPEG_EXE": "/bin/false"},
    ),
    # Commands that ask a server or Redis
    Case("a Redis that is away", "keys list", "redis_url", "127.0.0.1:1", "REDIS_URL", "", REDIS),
    Case("no key for the server", "jobs list", "POLYREEL_KEY", "", "polyreel keys create"),
    Case(
        "a server that is away",
        "queue --url http://127.0.0.1:1",
        "--url",
        "127.0.0.1:1",
        "polyreel up",
        "",
        env(KEY=SECRET),
    ),
    Case(
        "a server's address that is none",
        "gpus --url server",
        "--url",
        "server",
        "http://HOST:PORT",
        "",
        env(KEY=SECRET),
    ),
    Case("a key file that is not there", "jobs list --key-file {tmp}/no", "--key-file", "{tmp}/no", "Name a file"),
    Case("a key that is two lines", "jobs list", "POLYREEL_KEY", "", "one line", "", env(KEY=f"{SECRET}\n{SECRET}")),
    Case("an unknown scope", "keys create bob --scopes submitt", "--scopes", "submitt", "Did you mean submit?"),
]
