"""An experiment of two releases, and its report."""

import numpy as np
import pytest

from tests.support.helpers import create_small_taxonomy
from tests.support.outcome_tables import create_calibration, create_outcome, create_suggestion, write_tables
from training.outcomes.report import build_report
from training.outcomes.tables import open_tables


@pytest.fixture(scope="session")
def two_versions(tmp_path_factory):
    """The new version is right more often; the old one's fills are wrong of late; photos have changed."""
    random = np.random.default_rng(6)
    suggestions, outcomes = [], []
    for number in range(6000):
        day, version = number / 200, "new" if number % 2 else "old"
        late = day > 22
        right = random.random() < (0.96 if version == "new" else 0.80 if late else 0.93)
        more = {"photo_bytes": 4000 if late else 1000 + number % 7}
        suggestions.append(create_suggestion(str(number), day, version=version, p=0.7 + 0.2 * random.random(), **more))
        hidden = "HIDDEN" if number % 10 == 0 else "UNSPECIFIED"
        outcomes.append(create_outcome(str(number), day + 0.1, "gala" if right else "lemon", treatment=hidden))
    return write_tables(tmp_path_factory.mktemp("two-versions") / "outcomes", suggestions, outcomes)


@pytest.fixture(scope="session")
def report(two_versions):
    """The report of `two_versions`, with a guarantee for the third level that the old version breaks."""
    calibrations = {version: create_calibration(category_depth_3=0.8) for version in ("old", "new")}
    with open_tables(two_versions, {"": create_small_taxonomy()}) as tables:
        return build_report(tables, calibrations=calibrations, control="old", shares={"old": 0.5, "new": 0.5})
