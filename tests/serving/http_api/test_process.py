import pytest

from serving.config import ServeOptions
from serving.http_api.process import HttpServer
from serving.http_api.upstream import Upstream
from vision.errors import ListingVisionError


def test_a_missing_certificate_is_named(bundle, tmp_path):
    missing = tmp_path / "missing.pem"
    options = ServeOptions(
        bundle=bundle.folder, http_port=0, runtime_folder=tmp_path, tls_certificate=missing, tls_key=missing
    )
    with pytest.raises(ListingVisionError, match=r"missing\.pem"):
        HttpServer(options, Upstream(tmp_path))
