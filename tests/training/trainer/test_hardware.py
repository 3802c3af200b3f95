import pytest
import torch

from training.errors import RunError
from training.trainer.hardware import Machine


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decode_on": "gpu"}, "decode_on = 'gpu': use one of loader, device"),
        ({"augment_on": "gpu"}, "augment_on = 'gpu': use one of auto, loader, device"),
        ({"decode_on": "device", "augment_on": "loader"}, "augment_on = 'loader': the loader has no pixels"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(RunError, match=message):
        Machine(**values)


@pytest.mark.parametrize(
    ("values", "on_cpu", "on_gpu"),
    [
        ({"num_workers": 11}, False, True),
        ({"num_workers": 12}, False, False),
        ({"augment_on": "loader"}, False, False),
        ({"augment_on": "device"}, True, True),
        ({"decode_on": "device"}, True, True),
        ({"decode_on": "device", "augment_on": "device"}, True, True),
    ],
)
def test_photos_are_augmented_where_it_is_faster_and_where_they_are_decoded(values, on_cpu, on_gpu):
    machine = Machine(**values)
    assert machine.augments_on_device(torch.device("cpu")) == on_cpu
    assert machine.augments_on_device(torch.device("cuda")) == on_gpu
