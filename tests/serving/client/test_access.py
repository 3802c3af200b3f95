from serving.client import Access, ClientTls


def test_access_comes_from_the_environment(monkeypatch, tmp_path):
    assert Access.from_environment() == Access()
    monkeypatch.setenv("LISTING_VISION_TOKEN", "t")
    monkeypatch.setenv("LISTING_VISION_CA", str(tmp_path / "ca.pem"))
    assert Access.from_environment() == Access(tls=ClientTls(ca=tmp_path / "ca.pem"), token="t")
    assert Access.from_environment().metadata == [("authorization", "Bearer t")]
    monkeypatch.delenv("LISTING_VISION_CA")
    monkeypatch.setenv("LISTING_VISION_TLS", "1")
    assert Access.from_environment().tls == ClientTls()
