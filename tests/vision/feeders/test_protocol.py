"""Messages arrive as they were sent."""

import numpy as np

from tests.support.feeders import PREPROCESSING
from vision.feeders.photo_reader import PhotoFailure
from vision.feeders.pool import plan_feeders
from vision.feeders.protocol import FeederSettings, FeedResult, FeedTask


def test_messages_arrive_as_they_were_sent():
    [settings] = plan_feeders(PREPROCESSING, num_decoders=2, slab_photos=3, num_taken=1, python=("nice", "python"))
    assert FeederSettings.from_json(settings.to_json()) == settings
    task = FeedTask(slab=3, urls=("a.jpg", "https://é/b.jpg"))
    assert FeedTask.from_json(task.to_json()) == task
    failures = {2: PhotoFailure(reason="PHOTO_NOT_FOUND", message="gone\nfor good")}
    for result in (
        FeedResult(slab=1, failures=failures, wait_times_s={"read": 0.5}),
        FeedResult(slab=0, error="too busy"),
    ):
        assert FeedResult.from_json(result.to_json()) == result


def test_both_sides_see_the_same_slabs():
    [settings] = plan_feeders(PREPROCESSING, num_decoders=1, slab_photos=4, num_taken=1)
    assert settings.slabs_shape == (settings.num_slabs, 4, 32, 32, 3)
    memory = bytearray(int(np.prod(settings.slabs_shape)))
    settings.view_slabs(memory)[1, 2] = 7
    assert settings.view_slabs(memory)[1, 2, 31, 31, 2] == 7
    assert sum(memory) == 7 * 32 * 32 * 3
