"""Where settings come from, which source wins, and how a wrong one stops the start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from polyreel.errors import ConfigurationError
from polyreel.profiles import load_settings, read_profile
from polyreel.settings import Settings
from polyreel.storage import connect_storage
from polyreel.storage.local import LocalStorage

SECRET = "correct-horse-battery"


@pytest.fixture
def profile(tmp_path: Path):
    """Return a writer of YAML profiles that gives their path."""

    def write(text: str, name: str = "my.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def secrets_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("POLYREEL_SECRETS_DIR", str(folder))
    return folder


def refusal(config: str | None = None, **command_line: object) -> str:
    """Return the message that a start with these settings ends with."""
    with pytest.raises(ConfigurationError) as refused:
        load_settings(config, **command_line)
    shown = refused.value.__cause__ or (None if refused.value.__suppress_context__ else refused.value.__context__)
    assert shown is None, "a chained error would show the value in a traceback"
    return str(refused.value)


def test_every_setting_has_a_default_that_works_on_a_laptop(tmp_path: Path) -> None:
    settings = load_settings().settings
    assert settings.host == "127.0.0.1"
    assert settings.port == 8000
    assert settings.redis_url is None
    assert settings.state_dir == tmp_path / "xdg" / "polyreel"
    assert settings.storage_url == f"file://{tmp_path}/xdg/polyreel/results"
    assert settings.job_timeout_s == 3600


def test_each_source_wins_over_the_one_below_it(profile, secrets_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = profile("port: 1\nthreads: 1\nmax_queued: 1\ndrain_s: 1\n")
    for name in ("port", "threads", "max_queued"):
        (secrets_dir / f"polyreel_{name}").write_text("2\n")
    monkeypatch.setenv("POLYREEL_PORT", "3")
    monkeypatch.setenv("POLYREEL_THREADS", "3")
    loaded = load_settings(config, port=4)
    assert (loaded.settings.port, loaded.origin["port"]) == (4, "command line")
    assert (loaded.settings.threads, loaded.origin["threads"]) == (3, "environment")
    assert (loaded.settings.max_queued, loaded.origin["max_queued"]) == (2, f"secret files in {secrets_dir}")
    assert (loaded.settings.drain_s, loaded.origin["drain_s"]) == (1.0, f"profile {config}")
    assert (loaded.settings.host, loaded.origin["host"]) == ("127.0.0.1", "default")


def test_a_flag_that_was_not_given_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYREEL_PORT", "9000")
    assert load_settings(port=None).settings.port == 9000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 8001\n", "prot: there is no such setting. Did you mean port?"),
        (
            "models: {a: {family: ltx, checkpont: tiny:ltx, checkpoint: tiny:ltx}}\n",
            "models.a.checkpont: there is no such setting. Did you mean checkpoint?",
        ),
        (
            "models: {a: {family: ltx, checkpoint: tiny:ltx, limits: {num_frame: 9}}}\n",
            "models.a.limits.num_frame: there is no such setting. Did you mean num_frames?",
        ),
        (
            "models: {a: {family: ltx, checkpoint: tiny:ltx, defaults: {widht: 64}}}\n",
            "models.a.defaults.widht: there is no such setting. Did you mean width?",
        ),
        (
            "models: {limits: {family: ltx, checkpoint: tiny:ltx, revison: main}}\n",
            "models.limits.revison: there is no such setting. Did you mean revision?",
        ),
    ],
    ids=["top level", "in a model", "in limits", "in defaults", "in a model that is called like a setting"],
)
def test_a_misspelt_key_in_yaml_stops_the_start_and_names_the_right_one(profile, text: str, message: str) -> None:
    config = profile(text)
    assert refusal(config) == f"{message} (from profile {config})"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("POLYREEL_API_KEY", "Did you mean POLYREEL_API_KEYS?"),
        ("POLYREEL_STATEDIR", "Did you mean POLYREEL_STATE_DIR?"),
        ("POLYREEL_REDIS_URL", "Did you mean REDIS_URL?"),
        ("polyreel_prot", "Did you mean POLYREEL_PORT?"),
    ],
)
def test_a_misspelt_variable_stops_the_start_and_names_the_right_one(
    monkeypatch: pytest.MonkeyPatch, name: str, suggestion: str
) -> None:
    monkeypatch.setenv(name, SECRET)
    message = refusal()
    assert message.startswith(f"{name}: there is no such setting. {suggestion}")
    assert SECRET not in message


@pytest.mark.parametrize("service", ["POLYREEL", "POLYREEL_API", "POLYREEL_REDIS"])
def test_what_kubernetes_sets_for_a_service_of_our_name_is_ignored(
    monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    for name, value in {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "PORT": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP_PROTO": "tcp",
        "PORT_8000_TCP_PORT": "8000",
        "PORT_8000_TCP_ADDR": "10.0.0.1",
    }.items():
        monkeypatch.setenv(f"{service}_{name}", value)
    loaded = load_settings()
    assert (loaded.settings.port, loaded.origin["port"]) == (8000, "default")


@pytest.mark.parametrize(
    ("name", "value"),
    [("POLYREEL_SERVICE", "x"), ("POLYREEL_PORT_8000", "8000"), ("POLYREEL_PROT", "9000"), ("POLYREEL_API_PORT", "1")],
)
def test_what_only_looks_like_kubernetes_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert refusal().startswith(f"{name}: there is no such setting.")


def test_a_nested_variable_is_none_of_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYREEL_MODELS__LTX__SERVICE_HOST", "10.0.0.1")
    assert "models.ltx.service_host: there is no such setting." in refusal()


def test_a_misspelt_part_of_a_nested_variable_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYREEL_MODELS__LTX__FAMILY", "ltx")
    monkeypatch.setenv("POLYREEL_MODELS__LTX__CHECKPONT", "tiny:ltx")
    assert "models.ltx.checkpont: there is no such setting. Did you mean checkpoint? (from environment)" in refusal()


def test_variables_of_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYREELS_PORT", "1")
    assert load_settings().settings.port == 8000


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("alice:0123456789abcdef", {"alice": "0123456789abcdef"}),
        ("alice:sk:proj:0123456789", {"alice": "sk:proj:0123456789"}),
        (
            " alice : 0123456789abcdef , bob:fedcba9876543210,",
            {"alice": "0123456789abcdef", "bob": "fedcba9876543210"},
        ),
        ("alice:correct horse battery staple", {"alice": "correct horse battery staple"}),
        ("", {}),
    ],
    ids=["16 characters", "colons in the key", "two with blanks", "blanks inside", "none"],
)
def test_api_keys_are_split_at_the_first_colon(text: str, keys: dict[str, str]) -> None:
    parsed = load_settings(api_keys=text).settings.api_keys
    assert {name: key.get_secret_value() for name, key in parsed.items()} == keys


TOO_SHORT_OR_ODD = "must be 16 or more printable characters without a comma"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alice:0123456789abcde", f"the key of 'alice' {TOO_SHORT_OR_ODD}"),
        ("alice:0123456789\tabcdef", f"the key of 'alice' {TOO_SHORT_OR_ODD}"),
        ("alice:0123456789abcdéf", f"the key of 'alice' {TOO_SHORT_OR_ODD}"),
        ("alice:0123456789abcdef\x00", f"the key of 'alice' {TOO_SHORT_OR_ODD}"),
        (f"{SECRET}", "write name:key,name:key"),
        (f":{SECRET}", "write name:key,name:key"),
        (f"alice:{SECRET},{SECRET}", "write name:key,name:key"),
        (f"alice:{SECRET},alice:{SECRET}2", "the name 'alice' comes twice"),
        (f"alice:{SECRET},bob:{SECRET}", "two names share one key"),
    ],
    ids=["15", "tab", "accent", "NUL", "no name", "empty name", "comma in the key", "name twice", "key twice"],
)
def test_a_wrong_list_of_keys_is_refused_without_quoting_a_key(text: str, message: str) -> None:
    refused = refusal(api_keys=text)
    assert refused.startswith(f"api_keys: {message}")
    assert refused.endswith("(from command line)")
    assert SECRET not in refused
    assert "0123456789" not in refused


def test_a_key_with_a_comma_is_refused_also_where_yaml_could_hold_it(profile) -> None:
    assert TOO_SHORT_OR_ODD in refusal(profile("api_keys: {alice: '01234567,89abcdef'}\n"))


def test_keys_come_from_a_secret_file(secrets_dir: Path) -> None:
    (secrets_dir / "polyreel_api_keys").write_text(f"alice:{SECRET}\n")
    (secrets_dir / "redis_url").write_text("redis://:pass@host/0\n")
    settings = load_settings().settings
    assert settings.api_keys["alice"].get_secret_value() == SECRET
    assert settings.redis_url == SecretStr("redis://:pass@host/0")


def test_a_secret_file_that_is_not_readable_as_its_setting_is_named(secrets_dir: Path) -> None:
    (secrets_dir / "polyreel_models").write_text(f"{{ {SECRET}")
    message = refusal()
    assert "models" in message
    assert SECRET not in message


def test_a_nested_variable_that_is_not_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYREEL_DIALECTS", f"{{ {SECRET}")
    message = refusal()
    assert "dialects" in message
    assert SECRET not in message


def test_no_secret_shows_in_the_text_of_the_settings() -> None:
    settings = load_settings(
        api_keys=f"alice:{SECRET}", redis_url=f"redis://:{SECRET}@host/0", link_secret=SECRET
    ).settings
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)


def test_a_wrong_value_is_quoted_and_a_key_beside_it_is_not(profile) -> None:
    config = profile(f"api_keys: {{alice: {SECRET}}}\nport: eighty\nthreads: 0\npreviews: 7\n")
    message = refusal(config)
    assert f"port: write a whole number, got 'eighty' (from profile {config})" in message
    assert "threads: write 1 or more, got 0 (from" in message
    assert "previews: write true or false, got 7 (from" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"api_keys: [{SECRET}]", "api_keys: write a mapping, NAME: VALUE; what came is a secret and not shown"),
        (f"redis_url: {SECRET}", "redis_url: must start with redis://, rediss:// or unix://; what came is a secret"),
        (f"webhook_secrets: [{SECRET}]", 'webhook_secrets: write "whsec_" and 24 to 64 random bytes'),
        ("key_pepper: [1]", "key_pepper: write a text; what came is a secret and not shown"),
        ("s3: {secret_access_key: [1]}", "s3.secret_access_key: write a text; what came is a secret and not shown"),
        ("s3: {region: [1]}", "s3.region: write a text (from"),
        (f"redis_pasword: {SECRET}", "redis_pasword: there is no such setting."),
    ],
)
def test_a_value_that_may_be_a_secret_is_never_quoted(profile, text: str, message: str) -> None:
    refused = refusal(profile(text + "\n"))
    assert refused.startswith(message)
    assert SECRET not in refused


def test_yaml_that_does_not_parse_is_refused_without_quoting_its_lines(profile) -> None:
    config = profile(f"host: 0.0.0.0\napi_keys: {{alice: {SECRET}]\n")
    message = refusal(config)
    assert message.startswith(f"--config {config}: not valid YAML")
    assert "line 2" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "the file must be a mapping of settings"),
        (b"", "the file must be a mapping of settings"),
        (b"no: 1\n", "False: there is no such setting"),
        (b"8000: 1\n", "8000: there is no such setting"),
        (b"\xff\xfe\x00", "not valid YAML"),
    ],
    ids=["list", "empty", "boolean key", "number key", "not text"],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "odd.yaml").write_bytes(content)
    assert message in refusal(str(tmp_path / "odd.yaml"))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://video.example.com", "https://video.example.com"),
        ("https://video.example.com/", "https://video.example.com"),
        ("http://10.0.0.7:8000/video/", "http://10.0.0.7:8000/video"),
    ],
)
def test_public_url_is_kept_without_its_last_slash(given: str, kept: str) -> None:
    assert load_settings(public_url=given).settings.public_url == kept


@pytest.mark.parametrize(
    "given",
    [
        "video.example.com",
        "ftp://example.com",
        "https://",
        "https://a b",
        "https://example.com?a=1",
        "https://a/#b",
        "",
    ],
)
def test_a_public_url_that_links_cannot_start_with_is_refused(given: str) -> None:
    assert refusal(public_url=given).startswith("public_url: write an absolute address such as https://video.")


def test_redis_url_has_its_usual_name_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://broker:6379/0")
    loaded = load_settings()
    assert loaded.settings.redis_url == SecretStr("redis://broker:6379/0")
    assert loaded.origin["redis_url"] == "environment"


def test_redis_url_may_stand_in_yaml(profile, monkeypatch: pytest.MonkeyPatch) -> None:
    config = profile("redis_url: redis://yaml/0\n")
    assert load_settings(config).settings.redis_url == SecretStr("redis://yaml/0")
    monkeypatch.setenv("REDIS_URL", "redis://environment/0")
    assert load_settings(config).settings.redis_url == SecretStr("redis://environment/0")


def test_a_profile_extends_another_mapping_by_mapping(profile) -> None:
    below = profile(
        "port: 1\nmodels: {a: {family: ltx, checkpoint: tiny:ltx, names: {modelslab: [x]}}}\n", "below.yaml"
    )
    above = profile(f"extends: {below}\nmodels: {{a: {{dtype: bfloat16}}}}\n", "above.yaml")
    settings = load_settings(above).settings
    assert settings.port == 1
    assert settings.models["a"].model_dump(include={"family", "dtype", "names"}) == {
        "family": "ltx",
        "dtype": "bfloat16",
        "names": {"modelslab": ("x",)},
    }


def test_a_profile_that_extends_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "round.yaml").write_text(f"extends: {tmp_path / 'round.yaml'}\n")
    assert "extends itself" in refusal(str(tmp_path / "round.yaml"))


def test_an_unknown_profile_is_refused_with_the_shipped_ones() -> None:
    message = refusal("tinny")
    assert message.startswith("--config tinny: No such file or directory. Did you mean tiny?")
    assert message.endswith("gpu, team, tiny.")


def test_polyreel_config_chooses_the_profile_unless_a_flag_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYREEL_CONFIG", "team")
    assert load_settings().settings.host == "0.0.0.0"
    assert load_settings("tiny").settings.host == "127.0.0.1"


GPU_MODELS = [
    *("wan2.1-1.3b", "wan2.1-14b", "wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p"),
    *("wan2.2-t2v-a14b", "wan2.2-i2v-a14b", "wan2.2-5b"),
    *("ltx", "ltx-0.9.5", "ltx-13b", "ltx-13b-distilled", "ltx2", "ltx2.3"),
    *("darksushi", "sd15-animatediff", "animatelcm"),
]


@pytest.mark.parametrize(
    ("profile_name", "models"),
    [
        ("tiny", ["atelier", "ltx-tiny", "animatediff-tiny"]),
        ("gpu", GPU_MODELS),
        ("team", GPU_MODELS),
    ],
)
def test_a_shipped_profile_loads_and_its_catalogue_builds(profile_name: str, models: list[str]) -> None:
    settings = load_settings(profile_name).settings
    catalogue = settings.catalogue
    assert list(catalogue.models) == models
    assert catalogue.find("modelslab", "ltx") in models


def test_a_profile_that_is_read_twice_is_the_same() -> None:
    assert read_profile("team") == read_profile("team")
    assert "extends" not in read_profile("team")


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ("hooks.internal, 10.0.0.0/8,", ("hooks.internal", "10.0.0.0/8")),
        (["hooks.internal"], ("hooks.internal",)),
        ("", ()),
    ],
)
def test_webhook_hosts_are_a_list_or_text_with_commas(given: object, hosts: tuple[str, ...]) -> None:
    assert load_settings(webhook_allow=given).settings.webhook_allow == hosts


@pytest.mark.parametrize("name", ["results", "re sults", "re#sults", "100%25", "über?"])
def test_default_results_lie_in_the_state_folder_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    storage = connect_storage(load_settings(state_dir=tmp_path / name).settings.storage_url)
    assert isinstance(storage, LocalStorage)
    assert storage.folder == tmp_path / name / "results"


def test_settings_cannot_be_changed() -> None:
    settings = load_settings().settings
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


def test_loading_leaves_the_environment_as_it_was() -> None:
    before = dict(os.environ)
    load_settings()
    assert dict(os.environ) == before


def test_every_setting_is_explained_in_the_class() -> None:
    assert [name for name in Settings.model_fields if name not in (Settings.__doc__ or "")] == []


def test_prompts_stay_out_of_logs_unless_the_operator_wants_them_there(profile) -> None:
    assert load_settings(profile("port: 8001\n")).settings.log_prompts is False
    assert load_settings(profile("log_prompts: true\n")).settings.log_prompts is True
    assert "log_prompts" in refusal(profile("log_prompts: perhaps\n"))
