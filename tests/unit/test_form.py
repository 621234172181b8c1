"""Forms are read strictly and written anew."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterhouse.asked import FormPart
from meterhouse.errors import Malformed, UnsupportedMedia
from meterhouse.translate.form import read_form, write_form

TYPE = "multipart/form-data; boundary=b1"


def part(head: str = 'name="a"', content: bytes = b"1") -> bytes:
    return b"--b1\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (head.encode(), content)


@given(
    st.lists(
        st.builds(
            FormPart,
            name=st.from_regex(r"[a-z_]{1,9}\[\]", fullmatch=True),
            content=st.binary(max_size=200),
            filename=st.none() | st.from_regex(r"[\w .%-]{1,20}", fullmatch=True),
            content_type=st.sampled_from([None, "audio/mpeg", "text/plain; charset=utf-8"]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_written_is_read_again(parts: list[FormPart]) -> None:
    assert read_form(write_form(parts, "q" * 30), f"multipart/form-data; boundary={'q' * 30}") == parts


def test_a_quoted_boundary_and_a_file() -> None:
    body = b'--b 1\r\ncontent-disposition: form-data; name="f"; filename="x.wav"\r\ncontent-type: audio/wav\r\n\r\n'
    (found,) = read_form(body + b"\r\n--\r\n--b 1--", 'Multipart/Form-Data; charset=utf-8; boundary="b 1"')
    assert found == FormPart("f", b"\r\n--", "x.wav", "audio/wav")


@pytest.mark.parametrize("content_type", ["application/json", "", "multipart/mixed; boundary=b1"])
def test_another_type_is_no_form(content_type: str) -> None:
    with pytest.raises(UnsupportedMedia):
        read_form(part() + b"--b1--", content_type)


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", 'multipart/form-data; boundary="a\tb"', "multipart/form-data; boundary="]
)
def test_a_form_names_its_boundary(content_type: str) -> None:
    with pytest.raises(Malformed):
        read_form(part() + b"--b1--", content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        part(),
        part() + b"--b1",
        part() + b"--b1-- and more",
        b"preamble\r\n" + part() + b"--b1--",
        part() + part() + b"--b1--",
        part('name="a"; name="b"') + b"--b1--",
        part('name="a') + b"--b1--",
        part("name=a b") + b"--b1--",
        part('name="a\x00"') + b"--b1--",
        part("") + b"--b1--",
        b"--b1\r\nname: a\r\n\r\n1\r\n--b1--",
        b"--b1\r\nContent-Disposition: form-data; name=a\r\n1\r\n--b1--",
        part('name="a"\r\nContent-Disposition: form-data; name="b"') + b"--b1--",
        b'--b1\r\nContent-Disposition: form-data; name="a"\r\nContent-Type: x\r\n\r\n1\r\n--b1--',
        b"".join(part(f'name="a{number}"') for number in range(65)) + b"--b1--",
        part('name="a"' + " " * 3_000) + b"--b1--",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_form(body, TYPE)
