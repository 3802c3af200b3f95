import pytest

from training.reporting.glossary import GLOSSARY, choose_terms


def test_terms_come_in_the_order_asked_for_and_an_unknown_one_fails():
    assert choose_terms("recall", "ECE") == [("recall", GLOSSARY["recall"]), ("ECE", GLOSSARY["ECE"])]
    with pytest.raises(KeyError, match="nothing"):
        choose_terms("nothing")
