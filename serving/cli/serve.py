"""The verbs of serving: `serve`, `triton`; `classify` stands in `listing_vision`, for it can also explain."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from serving.errors import TritonUnsupported
from vision.errors import ListingVisionError
from vision.runtime.cli import new_app

__all__ = ["serve_app", "triton_app"]

triton_app = new_app("Bring in a Triton server, or write a model repository for one.")


class _ServeGroup(TyperGroup):
    """`serve BUNDLE` serves; `serve tune BUNDLE` measures how to."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args[:1] == ["tune"] else ["run", *args])


serve_app = typer.Typer(
    cls=_ServeGroup, help="Serve a bundle over gRPC; `serve tune`: find the best settings of its Triton by measurement."
)


@serve_app.command("run")
def serve(
    bundle: Annotated[Path, typer.Argument(help="A model bundle.", envvar="LISTING_VISION_BUNDLE")],
    host: Annotated[str, typer.Option(help="Address to listen on.", envvar="LISTING_VISION_HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", envvar="LISTING_VISION_PORT")] = 50051,
    triton: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of a Triton that serves the bundle; else one is started.", envvar="LISTING_VISION_TRITON"
        ),
    ] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="ONNX Runtime in the gateway process, no Triton.")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, help="Gateway processes on the port.", envvar="LISTING_VISION_WORKERS")
    ] = 1,
    isolate: Annotated[
        bool,
        typer.Option(
            help="Decode in processes of their own, which a photo may crash; else on threads.",
            envvar="LISTING_VISION_ISOLATE",
        ),
    ] = True,
    decode_in: Annotated[
        str,
        typer.Option(
            help="triton, where its model can, or gateway: pixels are sent.",
            envvar="LISTING_VISION_DECODE_IN",
        ),
    ] = "triton",
    tuning: Annotated[
        Path | None,
        typer.Option(help="What `serve tune` wrote, for the Triton started here.", envvar="LISTING_VISION_TUNING"),
    ] = None,
    canary: Annotated[
        Path | None,
        typer.Option(
            help="Another bundle, for a share of the listings; a given Triton serves it as listing_vision_canary.",
            envvar="LISTING_VISION_CANARY",
        ),
    ] = None,
    canary_share: Annotated[
        float,
        typer.Option(help="Of the listings, above 0 and at most 1.", envvar="LISTING_VISION_CANARY_SHARE"),
    ] = 0.05,
    shadow: Annotated[
        Path | None,
        typer.Option(
            help="Another bundle, which answers for the record; a given Triton serves it as listing_vision_shadow.",
            envvar="LISTING_VISION_SHADOW",
        ),
    ] = None,
    shadow_share: Annotated[
        float,
        typer.Option(help="Of the listings, above 0 and at most 1.", envvar="LISTING_VISION_SHADOW_SHARE"),
    ] = 1.0,
    drain_s: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds to go on serving after health says NOT_SERVING.", envvar="LISTING_VISION_DRAIN_S"
        ),
    ] = 0.5,
    connection_age_s: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Seconds after which a caller's connection is to be made anew, where a load balancer spreads them.",
            envvar="LISTING_VISION_CONNECTION_AGE_S",
        ),
    ] = None,
    status_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="HTTP port for /metrics, /healthz and /readyz; 0 takes a free one.",
            envvar="LISTING_VISION_STATUS_PORT",
        ),
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="HTTP/JSON and a page for people; 0 takes a free one. Needs the extra `http`.",
            envvar="LISTING_VISION_HTTP_PORT",
        ),
    ] = None,
    photo_uris: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated prefixes below which photos may be fetched. Needs the extra `photo-uris`.",
            envvar="LISTING_VISION_PHOTO_URIS",
        ),
    ] = None,
    outcomes: Annotated[
        str | None,
        typer.Option(
            help="Folder or fsspec URL for suggestions and outcomes, as Parquet. Needs the extra `outcomes`.",
            envvar="LISTING_VISION_OUTCOMES",
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM; read again when it changes.", envvar="LISTING_VISION_TLS_CERTIFICATE")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Of the certificate.", envvar="LISTING_VISION_TLS_KEY")] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(help="Callers must show a certificate of this CA (mTLS).", envvar="LISTING_VISION_TLS_CLIENT_CA"),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            help="Who may call: lines of a name and the SHA-256 of a bearer token.", envvar="LISTING_VISION_TOKENS"
        ),
    ] = None,
    jwks: Annotated[
        str | None,
        typer.Option(
            help="Who may call: URL or path of the keys (JWKS) that sign callers' tokens; `sub` names the caller.",
            envvar="LISTING_VISION_JWKS",
        ),
    ] = None,
    jwt_audience: Annotated[
        str | None,
        typer.Option(help="Whom signed tokens must be meant for.", envvar="LISTING_VISION_JWT_AUDIENCE"),
    ] = None,
    jwt_issuer: Annotated[
        str | None, typer.Option(help="Whom signed tokens must come from.", envvar="LISTING_VISION_JWT_ISSUER")
    ] = None,
    quota: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Photos a second of each caller; needs --tokens or --jwks.", envvar="LISTING_VISION_QUOTA"
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Speak plain text beyond this machine all the same.", envvar="LISTING_VISION_INSECURE"
        ),
    ] = False,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            help="Base URL of a collector that takes traces by OTLP over HTTP; else OTEL_EXPORTER_OTLP_ENDPOINT.",
            envvar="LISTING_VISION_OTLP_ENDPOINT",
        ),
    ] = None,
    trace_ratio: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the calls that are traced, where the caller has not decided.",
            envvar="LISTING_VISION_TRACE_RATIO",
        ),
    ] = 1.0,
) -> None:
    """Serve a bundle over gRPC until SIGTERM or Ctrl-C; SIGHUP replaces the gateway processes one by one.

    Example: listing-vision serve bundles/grocery --port 50051

    `listing-vision serve tune --help`: find the best settings of its Triton by measurement.
    """
    import asyncio

    from serving.config import ServeOptions
    from serving.observability.tracing import read_standard_endpoint
    from serving.supervisor.supervisor import serve as run

    if triton and in_process:
        raise typer.BadParameter("give --triton or --in-process, not both")
    if decode_in not in ("triton", "gateway"):
        raise typer.BadParameter(f"--decode-in {decode_in!r} is neither triton nor gateway")
    if tuning and (triton or in_process):
        raise typer.BadParameter("--tuning is for a Triton that is started here, not for --triton or --in-process")
    if (tls_certificate is None) != (tls_key is None):
        raise typer.BadParameter("--tls-certificate and --tls-key go together")
    if tls_client_ca and not tls_certificate:
        raise typer.BadParameter("--tls-client-ca needs --tls-certificate and --tls-key")
    if len({value is None for value in (jwks, jwt_audience, jwt_issuer)}) > 1:
        raise typer.BadParameter("--jwks, --jwt-audience and --jwt-issuer go together")
    if quota and not (tokens or jwks):
        raise typer.BadParameter("--quota tells callers by their tokens and needs --tokens or --jwks")
    if shadow and not outcomes:
        raise typer.BadParameter("--shadow answers for the record and needs --outcomes")
    options = ServeOptions(
        bundle=bundle.resolve(),
        canary=canary.resolve() if canary else None,
        canary_share=canary_share,
        shadow=shadow.resolve() if shadow else None,
        shadow_share=shadow_share,
        host=host,
        port=port,
        triton=triton,
        in_process=in_process,
        workers=workers,
        isolate=isolate,
        decode_in="triton" if decode_in == "triton" else "gateway",
        tuning=tuning.resolve() if tuning else None,
        drain_s=drain_s,
        connection_age_s=connection_age_s,
        status_port=status_port,
        http_port=http_port,
        photo_uris=tuple(part.strip() for part in photo_uris.split(",")) if photo_uris else (),
        outcomes=outcomes if outcomes is None or "://" in outcomes else str(Path(outcomes).resolve()),
        tls_certificate=tls_certificate.resolve() if tls_certificate else None,
        tls_key=tls_key.resolve() if tls_key else None,
        tls_client_ca=tls_client_ca.resolve() if tls_client_ca else None,
        tokens=tokens.resolve() if tokens else None,
        jwks=str(Path(jwks).resolve()) if jwks and "://" not in jwks else jwks,
        jwt_audience=jwt_audience,
        jwt_issuer=jwt_issuer,
        quota_photos_per_s=quota,
        insecure=insecure,
        otlp_endpoint=otlp_endpoint or read_standard_endpoint(),
        trace_ratio=trace_ratio,
    )
    asyncio.run(run(options))


@serve_app.command("tune")
def tune(
    bundle: Annotated[Path, typer.Argument(help="A model bundle.")],
    output: Annotated[Path, typer.Option(help="Folder of the tuned model repository; must not exist.")],
    p99_ms: Annotated[float, typer.Option(min=1, help="Slowest answer of a hundred that is acceptable.")] = 500,
    callers: Annotated[int, typer.Option(min=1, help="Who ask at the same time.")] = 16,
    seconds: Annotated[float, typer.Option(min=1, help="Of each setting's measurement.")] = 5,
) -> None:
    """Measure which instances, batch and queue delay of Triton answer most within a latency budget, on this machine.

    Writes a model repository with the best ones, and in it tuning.json, for `serve --tuning`.

    Example: listing-vision serve tune bundles/grocery --p99-ms 300 --output models/grocery
    """
    from serving.capacity import triton_sweep as tuning
    from serving.triton.install import find_triton
    from serving.triton.repository import write_repository
    from vision.bundle import load_bundle, refuse_existing

    refuse_existing(output)
    loaded, installation = load_bundle(bundle), find_triton()
    budget = tuning.Budget(p99_ms=p99_ms, callers=callers, seconds=seconds)
    best, measured = tuning.tune(
        loaded,
        installation,
        budget,
        on_measurement=lambda m: typer.echo(tuning.format_table([m], budget).splitlines()[1]),
    )
    write_repository(loaded, output, best.options)
    path = output / "tuning.json"
    tuning.write_tuning(path, best, measured, budget)
    typer.echo("\nbest:\n" + tuning.format_table([best], budget))
    typer.echo(f"written: {output}; serve with it: listing-vision serve {bundle} --tuning {path}")


@triton_app.command("install")
def install(
    if_supported: Annotated[
        bool, typer.Option("--if-supported", help="On a machine that cannot run it, say so and exit 0.")
    ] = False,
) -> None:
    """Install a Triton server from PyPI wheels into this Python environment (Linux x86-64).

    Example: listing-vision triton install
    """
    from serving.triton.install import install_triton

    try:
        typer.echo(f"Triton: {install_triton().binary}")
    except TritonUnsupported as error:
        if not if_supported:
            raise
        typer.echo(f"No Triton here, the gateway will answer from ONNX Runtime in its own process: {error}")


@triton_app.command("repository")
def repository(
    bundle: Annotated[Path, typer.Argument(help="A model bundle.")],
    output: Annotated[Path, typer.Argument(help="Folder of the model repository.")],
    backend: Annotated[str, typer.Option(help="onnxruntime, tensorrt, pytorch, python or python-gpu.")] = "onnxruntime",
    plan: Annotated[
        Path | None,
        typer.Option(help="Of --backend tensorrt: model.plan; without it the command that builds one is told."),
    ] = None,
    version: Annotated[int, typer.Option(min=1, help="Triton's version number; never reuse one.")] = 1,
    canary: Annotated[
        Path | None,
        typer.Option(
            help="Another bundle, written beside it as listing_vision_canary; for `serve --canary`.",
            envvar="LISTING_VISION_CANARY",
        ),
    ] = None,
    shadow: Annotated[
        Path | None,
        typer.Option(
            help="Another bundle, written beside it as listing_vision_shadow; for `serve --shadow`.",
            envvar="LISTING_VISION_SHADOW",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove the model that is there: for a start step that may run again.")
    ] = False,
) -> None:
    """Write a Triton model repository from a bundle.

    Example: listing-vision triton repository bundles/grocery models --backend onnxruntime
    """
    from serving.config import CANARY_MODEL_NAME, SHADOW_MODEL_NAME
    from serving.inference.triton_tensors import MODEL_NAME
    from serving.triton.config import BACKENDS, RepositoryOptions
    from serving.triton.repository import remove_model, write_repository
    from vision.bundle import load_bundle

    chosen = next((known for known in BACKENDS if known == backend), None)
    if chosen is None:
        raise typer.BadParameter(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if plan and (canary or shadow):
        raise typer.BadParameter("--plan is of one model; write canary and shadow into folders of their own")
    folders = {MODEL_NAME: bundle, CANARY_MODEL_NAME: canary, SHADOW_MODEL_NAME: shadow}
    bundles = {name: load_bundle(folder) for name, folder in folders.items() if folder}
    for name, loaded in bundles.items():
        if replace:
            remove_model(output, name)
        try:
            path = write_repository(
                loaded, output, RepositoryOptions(backend=chosen, version=version, model_name=name, plan=plan)
            )
        except FileExistsError as error:
            raise ListingVisionError(str(error)) from error
        typer.echo(f"written: {path}")
    typer.echo(f"start it with: tritonserver --model-repository={output}")
