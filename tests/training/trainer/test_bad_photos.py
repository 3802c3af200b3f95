import json

import pytest
import torch

from training.errors import RunError
from training.run import Run
from training.trainer.bad_photos import BadPhotos
from training.trainer.distributed import Ranks
from training.trainer.loading.dataloader import Batch


def batch_of(*rows):
    problems = [json.dumps({"row": row, "photo": f"{row}.jpg", "reason": "PHOTO_EMPTY"}) for row in rows]
    return Batch(*[torch.zeros(1)] * 5, problems=[*problems, ""])


@pytest.fixture
def bad_photos(tmp_path):
    return BadPhotos(Run(tmp_path), Ranks(device=torch.device("cpu")), num_photos=100, max_share=0.02)


def test_a_photo_is_counted_and_written_once(bad_photos, tmp_path):
    bad_photos.record([batch_of(3, 3), batch_of(8)])
    assert (bad_photos.num_new, bad_photos.rows) == (2, set())
    bad_photos.merge()
    bad_photos.record([batch_of(8)])
    assert (bad_photos.num_new, bad_photos.rows) == (0, {3, 8})
    lines = (tmp_path / "bad_photos.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [3, 8]


def test_more_than_the_allowed_share_is_refused(bad_photos):
    bad_photos.rows = {1, 2}
    bad_photos.require_few()
    bad_photos.rows = {1, 2, 3}
    with pytest.raises(RunError, match=r"3 of 100 training photos cannot be used, more than the share of 0\.02"):
        bad_photos.require_few()
