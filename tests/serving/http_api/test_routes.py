import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.http_api.routes import FORM_METHOD, list_routes, read_http_rule


def test_each_route_is_an_option_of_the_service():
    routes = {route.method: route for route in list_routes()}
    assert set(routes) == {"ClassifyListing", "ExplainPhoto", "ReportOutcome", "GetModel", "GetTaxonomy"}
    assert routes["GetTaxonomy"].rule == ("GET", "/v1/taxonomy")
    assert routes[FORM_METHOD].rule == ("POST", "/v1/listings:classify")
    assert routes[FORM_METHOD].request_class is pb.ClassifyListingRequest


@pytest.mark.parametrize(
    "rule",
    [{"get": "/v1/models/{name}"}, {"post": "/v1/a"}, {"post": "/v1/a", "body": "photo"}, {"delete": "/v1/a"}],
    ids=str,
)
def test_a_rule_that_is_not_implemented_is_refused(rule):
    options = descriptor_pb2.MethodOptions()
    options.Extensions[annotations_pb2.http].CopyFrom(type(options.Extensions[annotations_pb2.http])(**rule))
    with pytest.raises(ValueError, match="only GET, and POST"):
        read_http_rule(options)
