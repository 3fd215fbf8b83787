"""Addresses of brokers, as people write them."""

from __future__ import annotations

import pytest

from protocol.address import Endpoint


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("lab.example", Endpoint("lab.example")), ("lab.example:1884", Endpoint("lab.example", 1884)),
        ("mqtt://lab.example", Endpoint("lab.example")), ("mqtts://10.0.0.7:8884/", Endpoint("10.0.0.7", 8884, True)),
        ("mqtts://[::1]:8883", Endpoint("::1", 8883, True)), ("[fe80::1]", Endpoint("fe80::1")),
    ],
)  # fmt: skip
def test_an_address_is_read_in_each_form_and_written_so_that_it_is_read_again(text, endpoint):
    assert Endpoint.parse(text) == endpoint
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize("text", ["", "http://lab", "::1", "lab:port", "lab:99999", "a b", "mqtts://", "lab/topic"])
def test_what_is_no_address_is_refused_with_the_forms(text):
    with pytest.raises(ValueError, match="mqtts://HOST:PORT"):
        Endpoint.parse(text)


def test_the_usual_port_depends_on_the_scheme():
    assert Endpoint("lab").port_or() == 1883
    assert Endpoint("lab", tls=True).port_or() == 8883
    assert Endpoint("lab", tls=True).port_or(7) == 7
    assert Endpoint("lab", 9, True).port_or(7) == 9
