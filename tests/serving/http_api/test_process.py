import pytest

from serving.config import ServeOptions
from serving.http_api.process import create_server
from serving.http_api.upstream import Upstream
from vision.errors import ListingVisionError


def test_a_taken_port_and_a_missing_certificate_are_named(bundle, tmp_path):
    upstream = Upstream(tmp_path)
    options = ServeOptions(bundle=bundle.folder, http_port=0, runtime_folder=tmp_path)
    _, taken = create_server(options, upstream)
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListingVisionError, match=str(port)):
            create_server(ServeOptions(bundle=bundle.folder, http_port=port, runtime_folder=tmp_path), upstream)
    missing = tmp_path / "missing.pem"
    with pytest.raises(ListingVisionError, match=r"missing\.pem"):
        create_server(
            ServeOptions(
                bundle=bundle.folder, http_port=0, runtime_folder=tmp_path, tls_certificate=missing, tls_key=missing
            ),
            upstream,
        )
