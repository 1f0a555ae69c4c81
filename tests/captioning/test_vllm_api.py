import pytest

from stages.captioning.vllm_api import USED, missing_names


def test_names_and_parameters_that_a_package_lacks_are_listed():
    used = {
        "json:dumps": ("obj", "indent", "no_such_parameter"),
        "json:JSONDecoder.raw_decode": ("s", "idx"),
        "json:JSONDecoder.no_such_method": ("s",),
        "no_such_package.part:Name": (),
        "http:HTTPStatus": ("OK", "NO_SUCH_STATUS"),
        "json:JSONDecodeError": (),
    }
    assert list(missing_names(used)) == [
        "no_such_parameter of json.dumps",
        "json.JSONDecoder.no_such_method",
        "no_such_package.part.Name",
        "NO_SUCH_STATUS of http.HTTPStatus",
    ]


def test_installed_vllm_has_all_that_is_used():
    pytest.importorskip("vllm")
    assert list(missing_names(USED)) == []
