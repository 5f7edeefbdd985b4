from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tron_audit_otel import frames
from tron_audit_otel.frames import (
    FRAME_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    SegmentReader,
    frame_header,
    pack_number,
    segment_header,
    unpack_number,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = b"01234567"
PAYLOADS = st.lists(st.binary(max_size=200), min_size=1, max_size=8)


def segment(payloads: list[bytes], mark: bytes = MARK) -> bytes:
    """One record a frame."""
    data = segment_header(mark, 0)
    for number, payload in enumerate(payloads):
        data += frame_header(mark, number, 1, 0.0, payload) + payload
    return data


def extents(payloads: list[bytes]) -> list[tuple[int, int]]:
    """Where each frame begins and ends."""
    places, end = [], SEGMENT_HEADER_BYTES
    for payload in payloads:
        begin, end = end, end + FRAME_HEADER_BYTES + len(payload)
        places.append((begin, end))
    return places


@contextmanager
def reading(data: bytes) -> Iterator[SegmentReader]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        yield SegmentReader(file.fileno())


def read(data: bytes) -> dict[int, bytes]:
    """Each whole frame's payload by its number."""
    found, offset = {}, SEGMENT_HEADER_BYTES
    with reading(data) as reader:
        while (frame := reader.frame(offset, len(data))) is not None:
            header, payload = frame
            assert payload is not None
            assert header.first not in found
            found[header.first] = payload
            offset = header.end
    return found


@given(PAYLOADS)
def test_what_was_written_is_read(payloads: list[bytes]) -> None:
    assert read(segment(payloads)) == dict(enumerate(payloads))


@given(PAYLOADS, st.data())
def test_a_flipped_bit_costs_the_frame_that_it_is_in_and_no_other(payloads: list[bytes], data: st.DataObject) -> None:
    whole = bytearray(segment(payloads))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    hit = {number for number, (begin, end) in enumerate(extents(payloads)) if begin <= bit // 8 < end}
    assert read(bytes(whole)) == {number: payload for number, payload in enumerate(payloads) if number not in hit}


@given(PAYLOADS, st.data())
def test_a_cut_costs_the_frames_behind_it_and_no_other(payloads: list[bytes], data: st.DataObject) -> None:
    whole = segment(payloads)
    cut = data.draw(st.integers(SEGMENT_HEADER_BYTES, len(whole)))
    ends = [end for _, end in extents(payloads)]
    assert read(whole[:cut]) == {number: payloads[number] for number, end in enumerate(ends) if end <= cut}


@given(PAYLOADS, st.data())
def test_bytes_that_are_gone_from_the_middle_cost_the_frames_that_they_were_in(
    payloads: list[bytes], data: st.DataObject
) -> None:
    whole = segment(payloads)
    begin = data.draw(st.integers(SEGMENT_HEADER_BYTES, len(whole) - 1))
    end = data.draw(st.integers(begin + 1, len(whole)))
    found = read(whole[:begin] + whole[end:])
    assert found.items() <= dict(enumerate(payloads)).items()
    for number, (first, last) in enumerate(extents(payloads)):
        if last <= begin or first >= end:
            assert number in found  # of the others, one may be whole: what moved up can equal what is gone


def test_a_segment_whose_header_is_lost_twice_gives_nothing() -> None:
    whole = bytearray(segment([b"payload"]))
    whole[0] ^= 1
    assert read(bytes(whole)) == {0: b"payload"}
    whole[SEGMENT_HEADER_BYTES // 2] ^= 1
    with reading(bytes(whole)) as reader:
        assert reader.first is None
    assert read(bytes(whole)) == {}


def test_a_header_of_another_version_is_none() -> None:
    whole = segment([b"payload"])
    foreign = segment_header(MARK, 0).replace(b"TRONAUD\x01", b"TRONAUD\x02")
    assert read(foreign + whole[SEGMENT_HEADER_BYTES:]) == {}


def test_a_payload_that_looks_like_frames_is_never_taken_for_them_behind_damage() -> None:
    forged = segment([b"forged", b"forged too"], mark=b"abcdefgh")  # who writes a payload cannot know the mark
    whole = bytearray(segment([b"damaged" + forged + forged[SEGMENT_HEADER_BYTES:], b"next"]))
    whole[SEGMENT_HEADER_BYTES] ^= 1
    assert read(bytes(whole)) == {1: b"next"}


def test_a_payload_that_moves_up_to_where_a_frame_stood_is_never_taken_for_one() -> None:
    forged = segment([b"forged"], mark=b"abcdefgh")[SEGMENT_HEADER_BYTES:]
    whole = segment([b"gone" + forged, b"next"])
    gone = SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES + len(b"gone")
    left = whole[:SEGMENT_HEADER_BYTES] + whole[gone:]
    assert read(left) == {1: b"next"}
    with reading(left) as reader:
        assert [header.first for header in reader.headers(len(left))] == [1]


@pytest.mark.parametrize("search_bytes", [8, 9, 15, 16, 64])
def test_the_next_frame_is_found_wherever_the_blocks_of_the_search_end(
    search_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "_SEARCH_BYTES", search_bytes)
    for length in range(40):
        whole = bytearray(segment([b"x" * length, b"next"]))
        whole[SEGMENT_HEADER_BYTES + 1] ^= 1
        assert read(bytes(whole)) == {1: b"next"}


def test_a_payload_that_is_too_large_for_now_stays_unread() -> None:
    whole = segment([b"12345"])
    with reading(whole) as reader:
        assert reader.frame(SEGMENT_HEADER_BYTES, len(whole), 4) == (
            reader.header(SEGMENT_HEADER_BYTES, len(whole)),
            None,
        )
        found = reader.frame(SEGMENT_HEADER_BYTES, len(whole), 5)
        assert found is not None
        assert found[1] == b"12345"


def test_what_stands_behind_the_end_is_not_read() -> None:
    whole = segment([b"committed", b"not yet"])
    (_, end), _ = extents([b"committed", b"not yet"])
    with reading(whole) as reader:
        assert [header.first for header in reader.headers(end)] == [0]
        assert reader.frame(end, end) is None


@given(st.integers(0, 2**64 - 1), st.integers(0, 11), st.integers(0, 7))
def test_a_number_is_whole_or_none(number: int, at: int, bit: int) -> None:
    data = bytearray(pack_number(number))
    assert unpack_number(bytes(data)) == number
    assert unpack_number(bytes(data[:at])) is None
    data[at] ^= 1 << bit
    assert unpack_number(bytes(data)) is None


def test_a_file_of_zeros_is_no_number_and_no_segment() -> None:
    """What a power failure may leave of a file that was never synced."""
    assert unpack_number(bytes(64)) is None
    assert read(bytes(4096)) == {}


def test_a_disk_that_refuses_to_read_is_no_damage() -> None:
    descriptor = os.open(os.devnull, os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            SegmentReader(descriptor)
    finally:
        os.close(descriptor)
