import pytest
import typer

from training.cli.experiment import report


@pytest.mark.parametrize("share", ["x=2", "x", "=0.5"])
def test_a_share_of_another_form_is_a_usage_error(tmp_path, share):
    with pytest.raises(typer.BadParameter, match="give RELEASE=SHARE with a share"):
        report(str(tmp_path), [tmp_path], share=[share])
