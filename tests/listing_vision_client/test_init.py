import subprocess
import sys

import listing_vision_client


def test_every_public_name_is_there():
    assert set(dir(listing_vision_client)) == set(listing_vision_client.__all__)
    for name in listing_vision_client.__all__:
        assert getattr(listing_vision_client, name) is not None


def test_the_limits_need_no_grpc():
    code = "import sys, listing_vision_client.limits; assert not {'grpc', 'google.protobuf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
