import os

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.journals import checkpoint, intent, make_intent, make_record, terminal
from meterhouse.ids import new_request_id
from meterhouse.ledger.files import OsFiles, filesystem_of
from meterhouse.ledger.folder import JournalPolicy, SegmentFolder, SegmentName
from meterhouse.ledger.reader import JournalReader
from meterhouse.ledger.record import VERSION, Checkpoint, Intent, Terminal, UnreadableJournal, decode, encode
from meterhouse.ledger.segment import HEADER_BYTES, Header, SegmentScanner, SegmentWriter
from meterhouse.money import Price

SIZE = 4_096
PAYLOADS = st.lists(st.binary(min_size=1, max_size=200), max_size=12)
LASTING = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)


class HastyFiles(OsFiles):
    """Does not wait for the disk: these tests are about content."""

    def preallocate(self, descriptor, size_bytes):
        os.ftruncate(descriptor, 0)
        os.ftruncate(descriptor, size_bytes)

    def fsync_folder(self, folder):
        pass


@pytest.fixture
def folder(tmp_path):
    return SegmentFolder(tmp_path, HastyFiles(), JournalPolicy(segment_bytes=SIZE, keep_bytes=SIZE * 3))


def make_segment(folder, number=1, first_position=1, journal_id=None):
    file = folder.make(journal_id or new_request_id(), number)
    return SegmentWriter(OsFiles(), file, first_position, 7)


def scan(file):
    scanner = SegmentScanner(OsFiles(), file)
    found = []
    while (payload := scanner.read_record()) is not None:
        found += [payload, *scanner.read_ahead(2)]
    return found, scanner


# --- payloads


def test_each_payload_comes_back_as_it_was_encoded():
    request_id = new_request_id()
    started = decode(intent(request_id), origin="f")
    assert isinstance(started, Intent)
    assert started.request_id == request_id
    assert isinstance(started.price, Price)
    assert started.price.components[1].nanos_per_million == 8_000_000
    assert decode(intent(request_id, price=None), origin="f").price is None
    progress = decode(checkpoint(request_id, 12, 2, is_reported=True), origin="f")
    assert isinstance(progress, Checkpoint)
    assert (progress.entries[0].attempt, progress.entries[0].usage.output_tokens) == (2, 12)
    ended = (make_record(request_id), make_record(request_id, attempt=2))
    assert decode(terminal(*ended), origin="f") == Terminal(ended)


def test_a_payload_of_a_newer_version_is_an_error_that_names_the_file():
    newer = bytes([VERSION + 1]) + encode(make_intent("r"))[1:]
    with pytest.raises(UnreadableJournal, match=r"/x/1\.seg was written by a newer"):
        decode(newer, origin="/x/1.seg")


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x01", b"\x01junk", b"\x01" + msgspec.msgpack.encode([9, 1])])
def test_bytes_that_are_no_payload_are_an_error_that_names_the_file(data):
    with pytest.raises(UnreadableJournal, match=r"/x/1\.seg"):
        decode(data, origin="/x/1.seg")


# --- reading what was written


@LASTING
@given(payloads=PAYLOADS)
def test_what_was_written_is_read_in_its_order(folder, payloads):
    segment = make_segment(folder)
    written = [payload for payload in payloads if segment.append(payload)]
    found, scanner = scan(segment.file)
    assert found == written
    assert not scanner.is_torn
    assert scanner.offset == segment.offset
    folder.discard(segment.file)


@LASTING
@given(payloads=PAYLOADS, data=st.data())
def test_a_damaged_segment_gives_a_prefix_of_what_was_written(folder, payloads, data):
    segment = make_segment(folder)
    written = [payload for payload in payloads if segment.append(payload)]
    place = st.integers(0, SIZE - 1)
    kind = data.draw(st.sampled_from(["flip", "cut", "zero", "overwrite"]))
    at = data.draw(place)
    descriptor = segment.file.descriptor
    if kind == "cut":
        os.ftruncate(descriptor, at)
    elif kind == "flip":
        byte = os.pread(descriptor, 1, at)[0] ^ (1 << data.draw(st.integers(0, 7)))
        os.pwrite(descriptor, bytes([byte]), at)
    else:
        length = data.draw(st.integers(1, 300))
        junk = bytes(length) if kind == "zero" else data.draw(st.binary(min_size=length, max_size=length))
        os.pwrite(descriptor, junk[: SIZE - at], at)
    found, _ = scan(segment.file)
    assert found == written[: len(found)]
    if at >= segment.offset and kind != "cut":
        assert found == written
    folder.discard(segment.file)


@LASTING
@given(junk=st.binary(max_size=SIZE))
def test_a_file_of_anything_gives_nothing_and_no_error(folder, junk):
    file = folder.make(new_request_id(), 1)
    os.ftruncate(file.descriptor, len(junk))
    os.pwrite(file.descriptor, junk, 0)
    assert scan(file)[0] == []
    folder.discard(file)


@LASTING
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5), data=st.data())
def test_a_damaged_journal_gives_records_at_their_positions_and_reports_what_is_missing(folder, sizes, data):
    journal_id = new_request_id()
    written, files = {}, []
    for number, count in enumerate(sizes, 1):
        segment = make_segment(folder, number, len(written) + 1, journal_id)
        for _ in range(count):
            written[len(written) + 1] = b"record %d" % (len(written) + 1)
            segment.append(written[len(written)])
        files.append(segment.file)
    victim = data.draw(st.sampled_from(files))
    at = data.draw(st.integers(0, HEADER_BYTES + 60))
    byte = os.pread(victim.descriptor, 1, at)[0] ^ data.draw(st.integers(1, 255))
    os.pwrite(victim.descriptor, bytes([byte]), at)
    damages = []
    found = list(JournalReader(OsFiles(), lambda: files, damages.append))
    assert all(written[position] == payload for position, payload in found)
    assert [position for position, _ in found] == sorted({position for position, _ in found})
    if len(found) < len(written):
        assert {damage.path for damage in damages} == {victim.path}
    for file in files:
        folder.discard(file)


def test_records_of_a_files_earlier_life_are_not_read(folder):
    journal_id = new_request_id()
    old = make_segment(folder, 1, 1, journal_id)
    for _ in range(5):
        old.append(b"0123456789")
    # The same journal, number and record length, so that only the header's time is different.
    new = SegmentWriter(OsFiles(), old.file, 1, 8)
    new.append(b"abcdefghij")
    found, scanner = scan(old.file)
    assert found == [b"abcdefghij"]
    assert scanner.is_torn


def test_a_record_with_another_segments_number_ends_the_read(folder):
    segment = make_segment(folder)
    segment.append(b"mine")
    at = segment.offset
    segment.append(b"other")
    os.pwrite(segment.file.descriptor, (77).to_bytes(8, "little"), at + 8)
    found, scanner = scan(segment.file)
    assert found == [b"mine"]
    assert scanner.is_torn


def test_a_record_larger_than_the_read_buffer_is_read(tmp_path):
    folder = SegmentFolder(tmp_path, OsFiles(), JournalPolicy(segment_bytes=1 << 20))
    segment = make_segment(folder)
    large = os.urandom(300_000)
    for payload in (b"before", large, b"after"):
        segment.append(payload)
    assert scan(segment.file)[0] == [b"before", large, b"after"]
    folder.release(segment.file)


def test_what_is_appended_after_reading_to_the_end_is_seen(folder):
    segment = make_segment(folder)
    segment.append(b"one")
    scanner = SegmentScanner(OsFiles(), segment.file)
    assert (scanner.read_record(), scanner.read_record()) == (b"one", None)
    segment.append(b"two")
    assert (scanner.read_record(), scanner.read_record()) == (b"two", None)


def test_a_segment_of_a_newer_format_is_an_error_that_names_the_file(folder, monkeypatch):
    file = folder.make(new_request_id(), 1)
    with monkeypatch.context() as patched:
        patched.setattr("meterhouse.ledger.segment.FORMAT", 2)
        os.pwrite(file.descriptor, Header(file.journal_id, 1, 1, 0).encode(), 0)
    with pytest.raises(UnreadableJournal, match=str(file.path)):
        scan(file)


def test_a_segment_under_another_segments_name_is_not_read(folder):
    file = folder.make(new_request_id(), 1)
    os.pwrite(file.descriptor, Header(new_request_id(), 1, 1, 0).encode(), 0)
    assert scan(file)[0] == []


# --- the folder


@given(st.text(max_size=60))
def test_a_name_that_is_none_of_ours_is_not_read(text):
    parsed = SegmentName.parse(text)
    assert parsed is None or str(parsed) == text


def test_a_name_is_read_as_it_was_written():
    name = SegmentName(new_request_id(), 12, "shipped")
    assert SegmentName.parse(str(name)) == name


def test_a_new_segment_is_locked_zeroed_and_under_its_own_name(folder):
    file = folder.make("0" * 32, 3)
    assert file.path.name == f"{'0' * 32}-0000000003.seg"
    assert os.pread(file.descriptor, SIZE + 1, 0) == bytes(SIZE)
    name = SegmentName("0" * 32, 3, "seg")
    with pytest.raises(BlockingIOError):
        folder.lock(name)
    folder.release(file)
    again = folder.lock(name)
    assert again is not None
    assert again.size_bytes == SIZE
    folder.release(again)
    assert folder.lock(SegmentName("0" * 32, 4, "seg")) is None


def test_an_expired_segment_is_used_again_without_what_was_in_it(folder):
    shipped = make_segment(folder, 1)
    shipped.append(b"old")
    inode = os.fstat(shipped.file.descriptor).st_ino
    folder.mark_shipped(shipped.file)
    assert [name.state for name in folder.list_segments("seg", "shipped", "tmp")] == ["shipped"]
    age(shipped.file.path.with_suffix(".shipped"), 49 * 3_600)
    file = folder.make(new_request_id(), 1)
    assert os.fstat(file.descriptor).st_ino == inode
    assert scan(file)[0] == []
    assert [name.state for name in folder.list_segments("seg", "shipped", "tmp")] == ["seg"]


def age(path, seconds):
    moment = path.stat().st_mtime - seconds
    os.utime(path, (moment, moment))


def test_shipped_segments_are_removed_by_age_and_beyond_their_share(folder):
    journal_id = new_request_id()
    for number in range(1, 6):
        file = folder.make(journal_id, number)
        folder.mark_shipped(file)
        age(file.path.with_suffix(".shipped"), 3_600 * (6 - number))
    folder.tidy()
    assert [name.number for name in folder.list_segments("shipped")] == [3, 4, 5]
    for number in (3, 4):
        age(folder.path / str(SegmentName(journal_id, number, "shipped")), 48 * 3_600)
    folder.tidy()
    assert [name.number for name in folder.list_segments("shipped")] == [5]


def test_what_a_crash_left_half_made_is_removed_when_nobody_can_be_making_it(folder):
    fresh, old, busy = (folder.path / f"{'0' * 32}-000000000{number}.tmp" for number in (1, 2, 3))
    for path in (fresh, old, busy):
        path.write_bytes(b"")
    age(old, 700)
    age(busy, 700)
    descriptor = os.open(busy, os.O_RDWR)
    assert OsFiles().try_lock(descriptor)
    folder.tidy()
    os.close(descriptor)
    assert sorted(folder.path.iterdir()) == [fresh, busy]


def test_a_segment_that_cannot_be_made_leaves_nothing(folder, monkeypatch):
    def refuse(_self, _descriptor, _size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HastyFiles, "preallocate", refuse)
    with pytest.raises(OSError, match="No space"):
        folder.make(new_request_id(), 1)
    assert list(folder.path.iterdir()) == []


MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/export /srv nfs4 rw 0 0
tmpfs /srv/local tmpfs rw 0 0
me@host: /home/me/my\\040files fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/data", "ext4"),
        ("/srv", "nfs4"),
        ("/srv/x", "nfs4"),
        ("/srv/local/x", "tmpfs"),
        ("/srvx", "ext4"),
        ("/home/me/my files/j", "fuse.sshfs"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount_point(tmp_path, place, kind):
    assert filesystem_of(type(tmp_path)(place), MOUNTS) == kind
