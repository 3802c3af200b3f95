"""How `serve` serves, as the supervisor hands it to its processes."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from serving.auth.interceptor import TokenVerifier
from serving.auth.static_tokens import StaticTokenVerifier
from serving.auth.tls import ServerTls, is_loopback
from serving.inference.triton_tensors import MODEL_NAME
from serving.observability.tracing import TraceOptions
from serving.rollout.traffic_split import TrafficSplit
from serving.triton.config import RepositoryOptions, read_tuning
from vision.errors import ListingVisionError
from vision.runtime.cpus import usable_cores

__all__ = ["CANARY_MODEL_NAME", "SHADOW_MODEL_NAME", "ServeOptions", "gateway_socket_address", "process_control_path"]

CANARY_MODEL_NAME = f"{MODEL_NAME}_canary"
SHADOW_MODEL_NAME = f"{MODEL_NAME}_shadow"

_PATHS = (
    "bundle",
    "canary",
    "shadow",
    "tuning",
    "runtime_folder",
    "tls_certificate",
    "tls_key",
    "tls_client_ca",
    "tokens",
)


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    bundle: Path
    host: str = "127.0.0.1"
    port: int = 50051
    """0 takes a free one."""
    triton: str | None = None
    """HOST:PORT of a Triton that serves the bundle."""
    model_name: str = MODEL_NAME
    """Triton's name for it."""
    canary: Path | None = None
    """Another bundle, which answers `canary_share` of the listings from the start; an own Triton loads it, a given one
    serves it as `CANARY_MODEL_NAME`."""
    canary_share: float = 0.05
    shadow: Path | None = None
    """Another bundle, which answers `shadow_share` of the listings for the record; served as `SHADOW_MODEL_NAME`."""
    shadow_share: float = 1.0
    traffic_split: TrafficSplit | None = None
    """All releases that are loaded and what each is for; None: the bundle alone."""
    in_process: bool = False
    """ONNX Runtime in this process instead of Triton."""
    workers: int = 1
    """Gateway processes on the port, each with its share of the decoders."""
    reuse_port: bool = False
    """Other processes of the same tree listen on the port too."""
    isolate: bool = True
    """Decode in processes that a photo may crash; else on threads of the gateway, or in the model's own process."""
    decode_in: Literal["triton", "gateway"] = "triton"
    """Where photos are decoded if Triton's model can do it; one that cannot, as on a GPU, is sent pixels."""
    tuning: Path | None = None
    """What `serve tune` found best, for a Triton that is started here; None: what is best on most CPUs."""
    grace_period_s: float = 15.0
    """How long calls in flight may take to finish after SIGTERM."""
    drain_s: float = 0.5
    """How long to go on serving after health says NOT_SERVING, for load balancers to notice.

    Not 0: grpc.aio cancels calls that have arrived but not begun when it is told to stop.
    """
    health_interval_s: float = 1.0
    """Between two golden-photo checks."""
    connection_age_s: float | None = None
    """How long a caller's connection may last; calls on it finish, the next ones take a new one. None: for ever."""
    status_port: int | None = None
    """Of the supervisor's HTTP: metrics, /healthz, /readyz; 0 takes a free one, None: there is none."""
    http_port: int | None = None
    """Of HTTP/JSON and the page for people; 0 takes a free one, None: there is none."""
    photo_uris: tuple[str, ...] = ()
    """Prefixes below which photos may be fetched; empty: none are."""
    outcomes: str | None = None
    """Folder or fsspec URL for what was suggested and chosen; None: it is not recorded."""
    runtime_folder: Path | None = None
    """Where each gateway process also listens for its supervisor, on a socket named by its pid; None: nowhere."""
    tls_certificate: Path | None = None
    """PEM, with `tls_key`; None: plain text."""
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """Whose certificates callers must show; None: none."""
    tokens: Path | None = None
    """Callers and hashes of their bearer tokens (`serving.auth.static_tokens`); with no `jwks` and
    None:
    anybody may call."""
    jwks: str | None = None
    """URL or path of the keys of signed bearer tokens (`serving.auth.jwt_verifier`), with `jwt_audience` and
    `jwt_issuer`."""
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    quota_photos_per_s: float | None = None
    """Of each caller, over all gateway processes together; None: no quota."""
    insecure: bool = False
    """Whether plain text may be spoken beyond this machine."""
    otlp_endpoint: str | None = None
    """Where spans go, of the gateway and of a Triton that is started here (`serving.observability.tracing`); None: no
    traces."""
    trace_ratio: float = 1.0
    """Share of the calls that are traced, where the caller has not decided."""

    @property
    def tls(self) -> ServerTls | None:
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return ServerTls(certificate=self.tls_certificate, key=self.tls_key, client_ca=self.tls_client_ca)

    @property
    def traces(self) -> TraceOptions | None:
        """Raises ListingVisionError: a value is wrong."""
        return TraceOptions(endpoint=self.otlp_endpoint, ratio=self.trace_ratio) if self.otlp_endpoint else None

    def create_token_verifiers(self) -> list[TokenVerifier]:
        """Who tell callers by their tokens; none: anybody may call.

        Raises:
            ListingVisionError: tokens or keys cannot be used.
        """
        verifiers: list[TokenVerifier] = [StaticTokenVerifier(self.tokens)] if self.tokens else []
        if self.jwks and self.jwt_audience and self.jwt_issuer:
            from serving.auth.jwt_verifier import JwtOptions, JwtVerifier  # cryptography, only where it is asked for

            cache_path = self.runtime_folder / "jwks.json" if self.runtime_folder else None
            jwt_options = JwtOptions(
                jwks=self.jwks, audience=self.jwt_audience, issuer=self.jwt_issuer, cache_path=cache_path
            )
            verifiers.append(JwtVerifier(jwt_options))
        return verifiers

    def require_tls_beyond_loopback(self) -> None:
        """Raise ListingVisionError where photos and tokens would go over a network for all to read."""
        if not (self.tls or self.insecure or is_loopback(self.host)):
            raise ListingVisionError(
                f"refusing to listen on {self.host} in plain text: give --tls-certificate and --tls-key, or --insecure "
                "where something in front speaks TLS"
            )

    @property
    def connection_age_options(self) -> list[tuple[str, int]]:
        """Of the gRPC server: a load balancer in front can give a connection another place only when it is made."""
        return (
            [] if self.connection_age_s is None else [("grpc.max_connection_age_ms", int(1e3 * self.connection_age_s))]
        )

    @property
    def num_decoders(self) -> int:
        """Decoding processes of one gateway process: together as many as cores."""
        return max(1, usable_cores() // self.workers)

    @property
    def repository_options(self) -> RepositoryOptions:
        """How a Triton that is started here serves the model."""
        options = read_tuning(self.tuning) if self.tuning else RepositoryOptions(backend="python")
        return replace(options, isolate=self.isolate)

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "ServeOptions":
        raw = json.loads(text)
        paths = {name: Path(raw[name]) for name in _PATHS if raw[name] is not None}
        traffic_split = TrafficSplit.from_dict(raw["traffic_split"]) if raw["traffic_split"] else None
        return cls(**{**raw, **paths, "traffic_split": traffic_split, "photo_uris": tuple(raw["photo_uris"])})


def gateway_socket_address(folder: Path, pid: int) -> str:
    """Where a gateway process listens for its supervisor."""
    return f"unix:{folder}/{pid}.sock"


def process_control_path(folder: Path, pid: int) -> Path:
    """Where a gateway process takes its supervisor's commands."""
    return folder / f"{pid}.control"
