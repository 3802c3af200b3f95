"""The options of `serve`: flags, environment variables, checks and hand-over to its processes, declared once."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_type_hints

import typer

from serving.inference.model_names import CANARY_MODEL_NAME, MODEL_NAME, SHADOW_MODEL_NAME
from serving.observability.tracing import TraceOptions
from serving.rollout.traffic_split import TrafficSplit
from vision.errors import ListingVisionError
from vision.runtime.cpus import count_usable_cores

if TYPE_CHECKING:  # gRPC is not installed where models are only trained, and the console script reads this module
    from serving.api.suggestion_id import SuggestionSigner
    from serving.auth.interceptor import TokenVerifier
    from serving.auth.tls import ServerTls
    from serving.inference.triton_channel import TritonAccess
    from serving.triton.config import RepositoryOptions

__all__ = ["SUGGESTION_KEY_FILE", "RequireSignature", "ServeOptions", "create_suggestion_signer", "find_conflict"]

SUGGESTION_KEY_FILE = "suggestion.key"
"""In the runtime folder: the key that the supervisor draws where none is given."""


def _split_at_commas(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text else ()


def _strip_brackets(host: str) -> str:
    return host.removeprefix("[").removesuffix("]")


def _resolve_unless_url(text: str | None) -> str | None:
    return text if text is None or "://" in text else str(Path(text).resolve())


RequireSignature = Annotated[
    Path | None,
    typer.Option(
        help="PEM file of a public key: only bundles that were signed with its private key are used. Needs the extra "
        "`signing`.",
        envvar="LISTING_VISION_REQUIRE_SIGNATURE",
        resolve_path=True,
    ),
]
"""The flag of each verb that loads bundles."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """A field with a `typer.Option` is a flag of `serve`, with the type, default and help that stand here.

    Each flag is an environment variable too: `status_port` is `--status-port` and `LISTING_VISION_STATUS_PORT`. A flag
    goes before its variable. The other fields are set by the supervisor or by tests.
    """

    bundle: Annotated[Path, typer.Argument(help="A model bundle.", envvar="LISTING_VISION_BUNDLE", resolve_path=True)]
    host: Annotated[
        str, typer.Option(help="Address to listen on; :: for all, IPv6 and IPv4.", callback=_strip_brackets)
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="gRPC port; 0 takes a free one.")] = 50051
    triton: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Triton that serves the bundle. Default: `serve` starts one.")
    ] = None
    triton_ca: Annotated[
        Path | None,
        typer.Option(help="PEM file of the CA of --triton's certificate; without it plain text.", resolve_path=True),
    ] = None
    triton_key_file: Annotated[
        Path | None,
        typer.Option(help="File of a line NAME=VALUE: the key of --triton's restricted protocols.", resolve_path=True),
    ] = None
    require_triton: Annotated[
        bool,
        typer.Option(
            "--require-triton",
            help="Do not start without Triton. Default: gateway processes run the model where Triton does not start.",
        ),
    ] = False
    require_signature: RequireSignature = None
    require_patched_triton: Annotated[
        bool,
        typer.Option(
            "--require-patched-triton",
            help="Do not start with a --triton on another machine whose version has known security faults. "
            "Default: a warning.",
        ),
    ] = False
    model_name: str = MODEL_NAME
    """Name of the bundle's model in Triton."""
    in_process: Annotated[
        bool,
        typer.Option("--in-process", help="Run the model with ONNX Runtime in the gateway process, not in Triton."),
    ] = False
    workers: Annotated[int, typer.Option(min=1, help="Gateway processes that share the port.")] = 1
    owns_triton: bool = False
    """Whether the supervisor has started the Triton, so that all its gateways have the same one."""
    reuse_port: bool = False
    """Whether other gateway processes listen on the port too."""
    isolate: Annotated[
        bool, typer.Option(help="Decode photos in separate processes, which a broken photo may crash; else on threads.")
    ] = True
    decode_in: Annotated[
        Literal["triton", "gateway"],
        typer.Option(help="Where photos are decoded. A model that takes pixels only gets them from the gateway."),
    ] = "triton"
    tuning: Annotated[
        Path | None,
        typer.Option(help="tuning.json of `tune triton`, for the Triton that `serve` starts.", resolve_path=True),
    ] = None
    canary: Annotated[
        Path | None,
        typer.Option(
            help=f"Bundle for a share of the listings. Its model in --triton is {CANARY_MODEL_NAME}.",
            resolve_path=True,
        ),
    ] = None
    canary_share: Annotated[float, typer.Option(help="Share of the listings, above 0 and at most 1.")] = 0.05
    shadow: Annotated[
        Path | None,
        typer.Option(
            help=f"Bundle whose suggestions are recorded, not returned. Its model in --triton is {SHADOW_MODEL_NAME}.",
            resolve_path=True,
        ),
    ] = None
    shadow_share: Annotated[float, typer.Option(help="Share of the listings, above 0 and at most 1.")] = 1.0
    state_folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which loaded, promoted and removed releases outlast a restart. Default: a restart serves "
            "what the options name.",
            resolve_path=True,
        ),
    ] = None
    traffic_split: TrafficSplit | None = None
    """All loaded releases and the traffic of each; None: the bundle alone."""
    # Not 0: grpc.aio cancels calls that have arrived but not begun when its server stops.
    drain_s: Annotated[float, typer.Option(min=0, help="Seconds to keep serving after health reports NOT_SERVING.")] = (
        0.5
    )
    grace_period_s: float = 15.0
    """How long calls in flight may take to finish after SIGTERM."""
    health_interval_s: float = 1.0
    """Time between two checks with golden photos."""
    connection_age_s: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds after which clients must reconnect, so that a load balancer spreads them."),
    ] = None
    status_port: Annotated[
        int | None, typer.Option(min=0, help="HTTP port for /metrics, /healthz and /readyz; 0 takes a free one.")
    ] = None
    http_port: Annotated[
        int | None,
        typer.Option(min=0, help="Port of HTTP/JSON and the web page; 0 takes a free one. Needs the extra `http`."),
    ] = None
    http_hosts: Annotated[
        tuple[str, ...],
        typer.Option(
            help="Comma-separated host names by which HTTP may be called, beside those of this machine. Default: "
            "any; on a loopback address none.",
            metavar="HOSTS",
            callback=_split_at_commas,
        ),
    ] = ()
    photo_uris: Annotated[
        tuple[str, ...],
        typer.Option(
            help="Comma-separated URI prefixes below which photos may be fetched. Needs the extra `photo-uris`.",
            metavar="PREFIXES",
            callback=_split_at_commas,
        ),
    ] = ()
    outcomes: Annotated[
        str | None,
        typer.Option(
            help="Folder or fsspec URL for suggestions and outcomes, as Parquet. Needs the extra `outcomes`.",
            callback=_resolve_unless_url,
        ),
    ] = None
    outcomes_days: Annotated[
        float, typer.Option(min=1, help="Days after which stored suggestions and outcomes are deleted.")
    ] = 400.0
    suggestion_key: Annotated[
        Path | None,
        typer.Option(
            help="File of keys, one a line, that sign suggestion ids; the first one signs. All replicas need the same. "
            "Default: a key drawn at start, so that outcomes reported after a restart are unverified.",
            resolve_path=True,
        ),
    ] = None
    suggestion_days: Annotated[float, typer.Option(min=0.01, help="Days for which a suggestion id is valid.")] = 30.0
    runtime_folder: Path | None = None
    """Folder of the sockets on which the supervisor reaches its processes; None: there is no supervisor."""
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM file; read again when it changes.", resolve_path=True)
    ] = None
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.", resolve_path=True)] = None
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Require client certificates of this CA (mTLS).", resolve_path=True)
    ] = None
    tokens: Annotated[
        Path | None,
        typer.Option(help="File of callers: lines of a name and the SHA-256 of a bearer token.", resolve_path=True),
    ] = None
    jwks: Annotated[
        str | None,
        typer.Option(
            help="URL or path of the keys (JWKS) that sign callers' tokens; `sub` names the caller.",
            callback=_resolve_unless_url,
        ),
    ] = None
    jwt_audience: Annotated[str | None, typer.Option(help="Required audience of signed tokens.")] = None
    jwt_issuer: Annotated[str | None, typer.Option(help="Required issuer of signed tokens.")] = None
    quota_photos_per_s: Annotated[
        float | None,
        typer.Option(
            "--quota",
            envvar="LISTING_VISION_QUOTA",
            min=0.01,
            help="Photos per second of each caller, over all gateway processes; needs --tokens or --jwks.",
        ),
    ] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow plain text on addresses that other machines reach.")
    ] = False
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(help="Base URL of an OTLP/HTTP trace collector. Default: OTEL_EXPORTER_OTLP_ENDPOINT."),
    ] = None
    trace_ratio: Annotated[
        float, typer.Option(min=0, max=1, help="Share of calls to trace where the caller has not decided.")
    ] = 1.0

    @property
    def triton_access(self) -> "TritonAccess":
        from serving.inference.triton_channel import TritonAccess

        return TritonAccess(ca=self.triton_ca, key_file=self.triton_key_file)

    def require_tls_beyond_loopback(self) -> None:
        """Raise ListingVisionError if photos and tokens would cross a network in plain text."""
        from serving.processes.sockets import is_loopback

        if not (self.tls or self.insecure or is_loopback(self.host)):
            raise ListingVisionError(
                f"refusing to listen on {self.host} in plain text: give --tls-certificate and --tls-key, or --insecure "
                "where something in front speaks TLS"
            )

    @property
    def tls(self) -> "ServerTls | None":
        if self.tls_certificate is None or self.tls_key is None:
            return None
        from serving.auth.tls import ServerTls

        return ServerTls(certificate=self.tls_certificate, key=self.tls_key, client_ca=self.tls_client_ca)

    @property
    def traces(self) -> TraceOptions | None:
        """Raises ListingVisionError: a value is wrong."""
        return TraceOptions(endpoint=self.otlp_endpoint, ratio=self.trace_ratio) if self.otlp_endpoint else None

    def create_token_verifiers(self) -> "list[TokenVerifier]":
        """Return what identifies callers by their tokens; empty: every caller is admitted.

        Raises:
            ListingVisionError: tokens or keys cannot be used.
        """
        from serving.auth.static_tokens import StaticTokenVerifier

        verifiers: list[TokenVerifier] = [StaticTokenVerifier(self.tokens)] if self.tokens else []
        if self.jwks and self.jwt_audience and self.jwt_issuer:
            from serving.auth.jwt_verifier import JwtOptions, JwtVerifier  # cryptography, only where it is needed

            cache_path = self.runtime_folder / "jwks.json" if self.runtime_folder else None
            jwt_options = JwtOptions(
                jwks=self.jwks, audience=self.jwt_audience, issuer=self.jwt_issuer, cache_path=cache_path
            )
            verifiers.append(JwtVerifier(jwt_options))
        return verifiers

    @property
    def num_decoders(self) -> int:
        """Decode processes of one gateway process: all gateway processes together have one a core."""
        return max(1, count_usable_cores() // self.workers)

    @property
    def repository_options(self) -> "RepositoryOptions":
        """How the Triton that `serve` starts serves the model."""
        from serving.triton.config import RepositoryOptions, read_tuning

        options = read_tuning(self.tuning) if self.tuning else RepositoryOptions(backend="python")
        return replace(options, isolate=self.isolate)

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "ServeOptions":
        raw, hints = json.loads(text), get_type_hints(cls)
        for name in (field.name for field in fields(cls) if raw[field.name] is not None):
            if Path in (hints[name], *get_args(hints[name])):
                raw[name] = Path(raw[name])
        traffic_split = TrafficSplit.from_dict(raw["traffic_split"]) if raw["traffic_split"] else None
        lists = {name: tuple(raw[name]) for name in ("http_hosts", "photo_uris")}
        return cls(**{**raw, **lists, "traffic_split": traffic_split})


def find_conflict(options: ServeOptions) -> str | None:
    """Return what is wrong with the combination of flags, None if nothing is."""
    jwt = (options.jwks, options.jwt_audience, options.jwt_issuer)
    rules: Sequence[tuple[object, str]] = (
        (options.triton and options.in_process, "give --triton or --in-process, not both"),
        (
            options.require_triton and (options.triton or options.in_process),
            "--require-triton is for the Triton that `serve` starts; drop it with --triton and --in-process",
        ),
        (
            (options.triton_ca or options.triton_key_file) and not options.triton,
            "--triton-ca and --triton-key-file are for --triton; the Triton that `serve` starts needs neither",
        ),
        (
            options.tuning and (options.triton or options.in_process),
            "--tuning is for the Triton that `serve` starts; drop it with --triton and --in-process",
        ),
        ((options.tls_certificate is None) != (options.tls_key is None), "--tls-certificate and --tls-key go together"),
        (
            options.tls_client_ca and not options.tls_certificate,
            "--tls-client-ca needs --tls-certificate and --tls-key",
        ),
        (any(jwt) and not all(jwt), "--jwks, --jwt-audience and --jwt-issuer go together"),
        (
            options.quota_photos_per_s and not (options.tokens or options.jwks),
            "--quota counts by caller and needs --tokens or --jwks",
        ),
        (options.shadow and not options.outcomes, "--shadow records suggestions and needs --outcomes"),
    )
    return next((message for is_violated, message in rules if is_violated), None)


def create_suggestion_signer(options: ServeOptions) -> "SuggestionSigner":
    """Return the signer that all gateway processes of a supervisor share.

    Raises:
        ListingVisionError: the keys cannot be used.
    """
    from serving.api.suggestion_id import SuggestionSigner, load_signing_keys

    path = options.suggestion_key or (options.runtime_folder and options.runtime_folder / SUGGESTION_KEY_FILE)
    validity_s = 86_400 * options.suggestion_days
    if path is None:
        return SuggestionSigner.with_random_key(validity_s=validity_s)
    return SuggestionSigner(load_signing_keys(path), validity_s=validity_s)
