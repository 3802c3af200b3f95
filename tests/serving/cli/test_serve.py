"""The flags of `serve` and their environment variables, up to the options that the supervisor gets."""

from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from listing_vision.cli import app
from serving.cli.serve import serve
from serving.config import ServeOptions


@pytest.fixture
def parse(monkeypatch):
    """Parse a command line of `serve`; returns the options that the supervisor gets."""
    found: list[ServeOptions] = []

    async def record(options: ServeOptions) -> None:
        found.append(options)

    monkeypatch.setattr("serving.supervisor.supervisor.serve", record)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)

    def run(*words: str, **environment: str) -> ServeOptions:
        variables = {f"LISTING_VISION_{name}": value for name, value in environment.items()}
        done = CliRunner().invoke(app, ["serve", *words], env=variables, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return found[-1]

    return run


def test_a_flag_goes_before_its_variable_and_that_before_the_default(parse):
    assert parse("b").port == 50051
    assert parse("b", PORT="1").port == 1
    assert parse("b", "--port", "2", PORT="1").port == 2
    assert parse(BUNDLE="/bundles/grocery", ISOLATE="0", INSECURE="1").bundle == Path("/bundles/grocery")
    options = parse("b", ISOLATE="0", INSECURE="1", QUOTA="2.5", TOKENS="t", DECODE_IN="gateway")
    assert (options.isolate, options.insecure, options.quota_photos_per_s) == (False, True, 2.5)
    assert options.decode_in == "gateway"


def test_without_flags_every_option_has_the_default_of_its_declaration(parse):
    assert parse("/bundles/grocery") == ServeOptions(bundle=Path("/bundles/grocery"))


def test_paths_are_absolute_and_urls_stay(parse, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = parse("b", "--shadow", "s", "--outcomes", "o", "--tokens", "t", "--photo-uris", "https://a/, s3://b/")
    assert (options.bundle, options.shadow, options.tokens) == (tmp_path / "b", tmp_path / "s", tmp_path / "t")
    assert options.outcomes == str(tmp_path / "o")
    assert options.photo_uris == ("https://a/", "s3://b/")
    signed = ("--jwks", "https://login.example/keys", "--jwt-audience", "a", "--jwt-issuer", "i")
    options = parse("b", "--outcomes", "s3://bucket/o", *signed)
    assert (options.outcomes, options.jwks) == ("s3://bucket/o", "https://login.example/keys")


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--triton", "h:1", "--in-process"], "--in-process"),
        (["--tuning", "t.json", "--triton", "h:1"], "--tuning"),
        (["--require-triton", "--triton", "h:1"], "--require-triton"),
        (["--require-triton", "--in-process"], "--require-triton"),
        (["--triton-ca", "ca.pem"], "--triton-ca"),
        (["--triton-key-file", "key"], "--triton-key-file"),
        (["--tls-key", "k.pem"], "--tls-certificate"),
        (["--tls-client-ca", "ca.pem"], "--tls-client-ca"),
        (["--jwks", "https://login.example/keys", "--jwt-audience", "a"], "--jwt-issuer"),
        (["--quota", "5"], "--quota"),
        (["--shadow", "s"], "--outcomes"),
        (["--decode-in", "cloud"], "--decode-in"),
        (["--workers", "0"], "--workers"),
        (["--trace-ratio", "1.5"], "--trace-ratio"),
        (["--port", "many"], "--port"),
    ],
)
def test_wrong_usage_exits_2_and_names_the_flag(words, flag):
    done = CliRunner().invoke(app, ["serve", "b", *words])
    assert done.exit_code == 2
    assert flag in done.output


def test_each_flag_has_help_and_the_variable_of_its_name():
    application = typer.Typer(add_completion=False)
    application.command()(serve)
    for parameter in typer.main.get_command(application).params:
        assert parameter.help
        name = max(parameter.opts, key=len).removeprefix("--")
        assert parameter.envvar == f"LISTING_VISION_{name.replace('-', '_').upper()}"
