"""A service on a real port whose calls fail as a test says, and which counts its attempts."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc

from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import listing_vision_pb2_grpc as pb_grpc
from serving.api.status import build_status


class FakeService(pb_grpc.ListingVisionServiceServicer):
    """`failures` are those of the first attempts: a status code, or a Refusal; `fails_always` of all."""

    def __init__(self, *failures, fails_always=None, host="127.0.0.1"):
        self.failures, self.fails_always = list(failures), fails_always
        self._host, self.num_attempts, self.requests, self.metadata = host, 0, [], []
        self._lock = threading.Lock()

    def __enter__(self):
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_ListingVisionServiceServicer_to_server(self, self._server)
        self.address = f"{self._host}:{self._server.add_insecure_port(f'{self._host}:0')}"
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()

    def GetModel(self, request, context):
        self._attempt(request, context)
        return pb.GetModelResponse(category_count=7)

    def ClassifyListing(self, request, context):
        self._attempt(request, context)
        return pb.ClassifyListingResponse(listing_id=request.listing_id)

    def ReportOutcome(self, request, context):
        self._attempt(request, context)
        return pb.ReportOutcomeResponse(suggestion_id_status=pb.SUGGESTION_ID_STATUS_VALID)

    def ClassifyListings(self, request_iterator, context):
        for one in request_iterator:
            self.requests.append(one.request)
            yield pb.ClassifyListingsResponse(
                sequence=one.sequence, response=pb.ClassifyListingResponse(listing_id=one.request.listing_id)
            )

    def _attempt(self, request, context):
        with self._lock:
            self.num_attempts += 1
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            failure = self.failures.pop(0) if self.failures else self.fails_always
        if failure is None:
            return
        if isinstance(failure, grpc.StatusCode):
            context.abort(failure, "as the test says")
        status = build_status(failure)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(failure.code, status.message)
