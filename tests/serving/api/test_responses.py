import numpy as np

from listing_vision_client.protocol import reasons_pb2
from tests.support.gateway import PHOTO, call_gateway


def test_one_photo_is_answered_like_a_listing_of_that_photo(bundle):
    one, three = call_gateway(bundle, [PHOTO]), call_gateway(bundle, [PHOTO] * 3)
    assert [s.category_id for s in one.category_path] == [s.category_id for s in three.category_path]
    np.testing.assert_allclose(one.category_path[0].probability, three.category_path[0].probability, rtol=1e-5)


def test_every_photo_error_has_a_name_on_the_wire():
    from vision import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PhotoError)]
    names = {kind.reason for kind in kinds}
    on_the_wire = set(reasons_pb2.PhotoErrorReason.keys()) - {"PHOTO_ERROR_REASON_UNSPECIFIED"}
    assert names == on_the_wire
