"""XML that clients send, and XML that they get."""

import time
from datetime import UTC, datetime, timedelta, timezone
from xml.dom import minidom

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.s3.errors import S3Error
from portal.s3.xml import MAX_BODY, MAX_DEPTH, MAX_ELEMENTS, document, group, leaf, parse, timestamp
from tests.support.s3_wire import SAME_EACH_TIME

BOMB = b"""<?xml version="1.0"?><!DOCTYPE Delete [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><Delete>&b;</Delete>"""


def test_what_is_in_a_document():
    body = b"""<?xml version="1.0" encoding="UTF-8"?>
    <Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
      <Quiet>true</Quiet>
      <Object xsi:type="Thing"><Key> a&amp;b<!-- note -->c&#10;</Key></Object><Object><Key><![CDATA[<x>]]></Key><VersionId/></Object>
    </Delete>"""
    found = parse(body, "Delete")
    assert found.value("Quiet") == "true"
    assert found.text == ""
    first, second = found.children_named("Object")
    assert (first.value("Key"), first.attributes) == (" a&bc\n", {"type": "Thing"})
    assert (second.value("Key"), second.value("VersionId"), second.value("Missing")) == ("<x>", "", None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nothing",
        b"<Delete>",
        b"<Delete></Delete><Delete/>",
        b"<Other/>",
        BOMB,
        b'<!DOCTYPE Delete SYSTEM "file:///etc/passwd"><Delete/>',
        b'<!DOCTYPE Delete [<!ENTITY x SYSTEM "file:///etc/passwd">]><Delete>&x;</Delete>',
        b"<Delete>&unknown;</Delete>",
        b"<Delete>\xff</Delete>",
        b"<Delete>\x00</Delete>",
        BOMB.decode().encode("utf-16"),
        b"<x:Delete/>",
        b"<Delete>" + b"<a>" * MAX_DEPTH + b"</a>" * MAX_DEPTH + b"</Delete>",
        b"<Delete>" + b"<a/>" * MAX_ELEMENTS + b"</Delete>",
        b"<Delete>" + b" " * MAX_BODY + b"</Delete>",
    ],
)
def test_what_is_not_a_document_is_malformed(body):
    with pytest.raises(S3Error) as caught:
        parse(body, "Delete")
    assert caught.value.code == "MalformedXML"
    assert "passwd" not in caught.value.message


def test_one_of_a_kind_that_stands_twice_is_malformed():
    with pytest.raises(S3Error, match="MalformedXML"):
        parse(b"<a><b/><b/></a>", "a").value("b")


def test_text_in_a_hundred_thousand_pieces_takes_no_longer_than_in_one():
    begin = time.process_time()
    found = parse(b"<a>" + b"x<!---->" * 200_000 + b"</a>", "a")
    assert len(found.text) == 200_000
    assert time.process_time() - begin < 2


@SAME_EACH_TIME
@given(st.text(st.characters(codec="utf-8", exclude_characters="".join(map(chr, [*range(0x20), 0xFFFE, 0xFFFF])))))
def test_what_is_written_is_read_back(text):
    body = document("R", group("Contents", leaf("Key", text), leaf("Size", 7), leaf("Is", True)))
    inner = parse(body, "R").child("Contents")
    assert inner is not None
    assert (inner.value("Key"), inner.value("Size"), inner.value("Is")) == (text, "7", "true")
    # As a parser of somebody else reads it.
    assert "".join(node.data for node in minidom.parseString(body).getElementsByTagName("Key")[0].childNodes) == text  # noqa: S318 - written by ourselves


def test_a_line_break_in_a_key_survives():
    assert parse(document("R", leaf("Key", "a\r\nb\t")), "R").value("Key") == "a\r\nb\t"


def test_a_character_that_xml_does_not_know_is_replaced():
    assert parse(document("R", leaf("Key", "a\x00b\x1f\uffff\x85")), "R").value("Key") == "a\ufffdb\ufffd\ufffd\x85"


def test_moments():
    assert timestamp(datetime(2026, 2, 3, 16, 45, 9, 7999, tzinfo=UTC)) == "2026-02-03T16:45:09.007Z"
    assert timestamp(datetime(2026, 2, 3, 0, 0, tzinfo=timezone(timedelta(hours=1)))) == "2026-02-02T23:00:00.000Z"
