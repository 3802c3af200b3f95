import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.helpers import encode_image
from training.errors import RunError
from training.trainer.loading.dataloader import create_evaluation_batches, create_training_batches
from training.trainer.loading.sampler import ResumableBatchSampler
from vision.images import Preprocessing, prepare_photo
from vision.images.gpu_decoding import DeviceDecoder
from vision.manifest import Manifest
from vision.photo_files import read_photo
from vision.taxonomy import Taxonomy


@pytest.fixture
def data(synthetic_dataset):
    manifest = Manifest.load(str(synthetic_dataset / "manifest.parquet")).select_split("train")
    return manifest, manifest.resolve_labels(Taxonomy.load(synthetic_dataset / "taxonomy.json"))


CPU = torch.device("cpu")


def load_batches(data, recipe, *, num_workers=0, only_crop=False, decode_on=None, **draws):
    sampler = ResumableBatchSampler(*data, recipe, **draws)
    loader = create_training_batches(
        *data, recipe, sampler, num_workers=num_workers, only_crop=only_crop, decode_on=decode_on
    )
    return loader, sampler.steps_per_epoch


def test_every_photo_comes_once_an_epoch_at_the_stage_size(data, small_recipe):
    loader, steps_per_epoch = load_batches(data, small_recipe)
    batches = list(loader)
    assert len(batches) == steps_per_epoch * 3
    sizes = [batch.photos_nhwc.shape for batch in batches]
    assert {s[1:] for s in sizes[:steps_per_epoch]} == {(48, 48, 3)}
    assert {s[1:] for s in sizes[steps_per_epoch:]} == {(64, 64, 3)}
    for epoch in range(3):
        rows = torch.cat([b.rows for b in batches[epoch * steps_per_epoch : (epoch + 1) * steps_per_epoch]])
        assert sorted(rows.tolist()) == list(range(len(data[0])))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_begun_in_the_middle_gives_the_same_pixels(data, small_recipe, num_workers):
    whole, _ = load_batches(data, small_recipe)
    rest, _ = load_batches(data, small_recipe, first_step=3, num_workers=num_workers)
    for one, other in zip(list(whole)[3:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:5], other[:5], strict=True))


def test_epochs_differ(data, small_recipe):
    loader, steps_per_epoch = load_batches(data, small_recipe)
    batches = list(loader)
    assert not torch.equal(batches[steps_per_epoch].rows, batches[2 * steps_per_epoch].rows)


def test_evaluation_photos_are_those_of_serving_in_order(data):
    preprocessing = Preprocessing(input_px=64)
    batches = list(create_evaluation_batches(*data, preprocessing, batch_size=7, num_workers=0))
    assert torch.cat([b.rows for b in batches]).tolist() == list(range(len(data[0])))
    served = prepare_photo(read_photo(data[0].get_photo_url(9)), preprocessing)
    assert np.array_equal(batches[1].photos_nhwc[2].numpy(), served)


@pytest.fixture
def replace_with_bad_photo(data, tmp_path):
    """The training rows with row 6 broken and row 9 gone."""
    rows = data[0].table.to_pylist()
    rows = [{**row, "photo": data[0].get_photo_url(i)} for i, row in enumerate(rows)]
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    rows[5]["photo"], rows[8]["photo"] = str(tmp_path / "broken.jpg"), str(tmp_path / "gone.jpg")
    return Manifest.from_rows(rows, ""), data[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_photos_are_replaced_and_named(replace_with_bad_photo, small_recipe, num_workers):
    loader, _ = load_batches(replace_with_bad_photo, small_recipe, num_workers=num_workers)
    problems = [json.loads(p) for batch in loader for p in batch.problems if p]
    assert {(p["row"], p["reason"]) for p in problems} == {(6, "PHOTO_TRUNCATED"), (9, "PHOTO_MISSING")}
    assert all(p["photo"].endswith(("broken.jpg", "gone.jpg")) and p["replaced_by_row"] not in (6, 9) for p in problems)


def test_a_replacement_brings_its_own_labels(replace_with_bad_photo, small_recipe):
    labels = replace_with_bad_photo[1]
    for batch in load_batches(replace_with_bad_photo, small_recipe)[0]:
        assert batch.category_nodes.tolist() == labels.category_nodes[batch.rows].tolist()
        assert not {5, 8} & set(batch.rows.tolist())


def change_photos(data, folder, change):
    """The training rows, their photos as `change` makes them of row and bytes."""
    rows = data[0].table.to_pylist()
    for index, row in enumerate(rows):
        path = folder / f"{index}.jpg"
        path.write_bytes(change(index, read_photo(data[0].get_photo_url(index))))
        row["photo"] = str(path)
    return Manifest.from_rows(rows, ""), data[1]


def assert_same(one, other, *, by_at_most):
    assert all(torch.equal(a, b) for a, b in zip(one[1:5], other[1:5], strict=True))
    assert one.problems == other.problems
    assert (one.photos_nhwc.int() - other.photos_nhwc.int()).abs().float().mean() <= by_at_most


@pytest.mark.parametrize("num_workers", [0, 2])
def test_decoding_on_the_device_gives_what_the_loader_gives(data, small_recipe, num_workers):
    device, _ = load_batches(data, small_recipe, num_workers=num_workers, only_crop=True, decode_on=CPU)
    loader, _ = load_batches(data, small_recipe, only_crop=True)
    for one, other in zip(device, loader, strict=True):
        assert (one.photos_nhwc.shape, one.photos_nhwc.dtype) == (other.photos_nhwc.shape, torch.uint8)
        assert one.photos_nhwc.is_contiguous()
        assert_same(one, other, by_at_most=1.0)


def test_decoding_on_the_device_begun_in_the_middle_gives_the_same_pixels(data, small_recipe):
    whole, _ = load_batches(data, small_recipe, only_crop=True, decode_on=CPU)
    rest, _ = load_batches(data, small_recipe, first_step=3, num_workers=2, only_crop=True, decode_on=CPU)
    for one, other in zip(list(whole)[3:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:5], other[:5], strict=True))


def test_photos_that_are_no_plain_jpegs_are_decoded_by_the_loader(data, small_recipe, tmp_path, caplog, monkeypatch):
    """Turned ones beside PNGs beside plain ones, and all of them turned."""
    turned = Image.Exif()
    turned[0x0112] = 6

    def change(index, bytes_):
        photo = Image.open(io.BytesIO(bytes_))
        kinds = [{"format": "JPEG", "exif": turned}, {"format": "PNG"}, {"format": "JPEG"}]
        return encode_image(photo, **kinds[index % 3])

    mixed = change_photos(data, tmp_path, change)
    device, _ = load_batches(mixed, small_recipe, only_crop=True, decode_on=CPU)
    loader, _ = load_batches(mixed, small_recipe, only_crop=True)
    for one, other in zip(device, loader, strict=True):
        by_loader = one.rows % 3 != 2
        assert torch.equal(one.photos_nhwc[by_loader], other.photos_nhwc[by_loader])
        assert_same(one, other, by_at_most=1.0)

    monkeypatch.setattr("training.trainer.loading.dataloader.PHOTOS_BEFORE_WARNING", 40)
    all_turned = change_photos(data, tmp_path, lambda _, data: encode_image(Image.open(io.BytesIO(data)), exif=turned))
    device, _ = load_batches(all_turned, small_recipe, only_crop=True, decode_on=CPU)
    loader, _ = load_batches(all_turned, small_recipe, only_crop=True)
    for one, other in zip(device, loader, strict=True):
        assert_same(one, other, by_at_most=0)
    assert caplog.text.count("only 0 of the first ") == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_photos_that_the_device_refuses_are_replaced_and_named_as_the_loader_does(
    data, small_recipe, tmp_path, num_workers
):
    def change(index, bytes_):
        # Without its quantization tables a JPEG has a good header and pixels that no decoder makes out.
        return {5: bytes_.replace(b"\xff\xdb", b"\xff\xfe"), 8: bytes_[:-100]}.get(index, bytes_)

    broken = change_photos(data, tmp_path, change)
    device, _ = load_batches(broken, small_recipe, num_workers=num_workers, only_crop=True, decode_on=CPU)
    loader, _ = load_batches(broken, small_recipe, only_crop=True)
    problems = set()
    for one, other in zip(device, loader, strict=True):
        assert_same(one, other, by_at_most=1.0)
        problems |= {json.loads(problem)["row"] for problem in one.problems if problem}
        assert one.category_nodes.tolist() == broken[1].category_nodes[one.rows].tolist()
    assert problems == {6, 9}


def test_a_photo_that_only_the_device_refuses_is_decoded_by_pillow(data, small_recipe, monkeypatch):
    decoded = DeviceDecoder.decode_files
    first = np.frombuffer(read_photo(data[0].get_photo_url(0)), np.uint8)

    def refuse_the_first(self, files):
        if any(np.array_equal(file.numpy(), first) for file in files):
            raise RuntimeError("Error while decoding JPEG images: Failed to get image info: 3")
        return decoded(self, files)

    monkeypatch.setattr(DeviceDecoder, "decode_files", refuse_the_first)
    device, _ = load_batches(data, small_recipe, only_crop=True, decode_on=CPU)
    loader, _ = load_batches(data, small_recipe, only_crop=True)
    for one, other in zip(device, loader, strict=True):
        assert not any(one.problems)
        assert_same(one, other, by_at_most=1.0)
        assert torch.equal(one.photos_nhwc[one.rows == 0], other.photos_nhwc[other.rows == 0])


def test_a_device_that_cannot_decode_is_told_with_the_option_that_can(data, small_recipe, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("torchvision not compiled with nvJPEG support\nmore")

    monkeypatch.setattr("torchvision.io.decode_jpeg", refuse)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    told = r"no JPEG can be decoded on cpu \(torchvision: .*nvJPEG support; torchcodec: .*\); use --decode-on loader"
    with pytest.raises(RunError, match=told):
        load_batches(data, small_recipe, only_crop=True, decode_on=CPU)


def test_a_device_that_fails_names_the_photos_and_the_way_on(data, small_recipe, monkeypatch):
    loader, _ = load_batches(data, small_recipe, only_crop=True, decode_on=CPU)

    def fail(*_, **__):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(DeviceDecoder, "decode_crops", fail)
    with pytest.raises(RunError, match=r"cpu failed while it decoded 1\d photos \(.*\.jpg, …\): CUDA error.*resume"):
        next(iter(loader))


def test_when_nothing_can_be_read_the_photo_is_named(data, small_recipe, tmp_path):
    rows = [{**row, "photo": f"{tmp_path}/gone.jpg"} for row in data[0].table.to_pylist()]
    loader, _ = load_batches((Manifest.from_rows(rows, ""), data[1]), small_recipe)
    with pytest.raises(RunError, match=r"gone\.jpg cannot be used .*nor can 10 other photos.*data check"):
        next(iter(loader))


def test_too_few_photos_for_a_batch(data, small_recipe):
    few = data[0].take(np.arange(3))
    with pytest.raises(RunError, match="3 training photos do not fill one batch of 16"):
        ResumableBatchSampler(few, data[1], small_recipe)
