"""Opening and writing: regular files alone, bounded, whole or absent, by the umask, inside their folder."""

from __future__ import annotations

import gzip
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest

from normalcy import files
from normalcy.errors import DataError, ModelFileError, SettingsError, WriteError
from normalcy.files import open_regular, prepare_target, refuse_existing, write_bytes, write_folder


def put(text: str):
    def fill(folder: Path) -> None:
        (folder / "maps").mkdir()
        (folder / "maps" / "a").write_text(text)
        (folder / "run.json").write_text(text)

    return fill


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder, hidden files too: path -> text."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_text()
    return found


WHOLE = {"maps/a", "run.json"}


# -- folders


def test_a_folder_is_written_and_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    write_folder(out, put("1"))
    assert tree(tmp_path) == {"a/b/out/maps/a": "1", "a/b/out/run.json": "1"}
    with pytest.raises(SettingsError, match="exists and is not empty"):
        write_folder(out, put("2"))
    write_folder(out, put("2"), overwrite=True)
    assert tree(tmp_path) == {"a/b/out/maps/a": "2", "a/b/out/run.json": "2"}


def test_replacing_without_an_atomic_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(one: Path, other: Path) -> None:
        raise OSError(38, "Function not implemented")

    write_folder(tmp_path / "out", put("1"))
    monkeypatch.setattr(files, "_exchange", absent)
    write_folder(tmp_path / "out", put("2"), overwrite=True)
    assert tree(tmp_path) == {"out/maps/a": "2", "out/run.json": "2"}


def test_parents_made_for_nothing_are_removed(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise DataError("no image")

    with pytest.raises(DataError, match="no image"):
        write_folder(tmp_path / "a" / "b", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_appears_meanwhile_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fill(folder: Path) -> None:
        put("1")(folder)
        out.mkdir()
        (out / "precious").write_text("mine")

    with pytest.raises(SettingsError, match=r"not empty|meanwhile"):
        write_folder(out, fill)
    assert tree(tmp_path) == {"out/precious": "mine"}


def test_an_empty_folder_stays_and_is_filled(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o750)
    before = out.stat()
    write_folder(out, put("1"))
    assert (out.stat().st_ino, out.stat().st_mode) == (before.st_ino, before.st_mode)
    assert tree(tmp_path) == {"out/maps/a": "1", "out/run.json": "1"}


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    (tmp_path / "later").symlink_to(tmp_path / "new")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    write_folder(tmp_path / "out", put("1"))
    write_folder(tmp_path / "out", put("2"), overwrite=True)
    write_folder(tmp_path / "later", put("3"))
    assert (tmp_path / "out").is_symlink()
    assert tree(tmp_path / "disk") == {"maps/a": "2", "run.json": "2"}
    assert tree(tmp_path / "new") == {"maps/a": "3", "run.json": "3"}
    with pytest.raises(SettingsError, match="leads nowhere"):
        write_folder(tmp_path / "circle", put("4"))


def test_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    inode = here.stat().st_ino
    write_folder(Path("."), put("1"))
    assert tree(here) == {"maps/a": "1", "run.json": "1"}
    write_folder(Path("."), put("2"), overwrite=True)
    assert tree(tmp_path) == {"here/maps/a": "2", "here/run.json": "2"}
    assert here.stat().st_ino == inode
    (here / "run.json").unlink()  # no longer recognised as a folder of normalcy
    with pytest.raises(SettingsError, match="files that normalcy did not write, such as maps"):
        prepare_target(Path("."), overwrite=True)
    assert tree(here) == {"maps/a": "2"}


def test_a_mount_point_is_decided_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(files, "_mount_points", lambda: {out})
    rename = os.rename

    def busy(one: Path, other: Path) -> None:
        if out in (Path(one), Path(other)):
            raise OSError(16, "Device or resource busy")
        rename(one, other)

    monkeypatch.setattr("os.rename", busy)
    out.mkdir()
    write_folder(out, put("1"))
    write_folder(out, put("2"), overwrite=True)
    assert tree(tmp_path) == {"out/maps/a": "2", "out/run.json": "2"}
    files.remove(out / "run.json")
    with pytest.raises(SettingsError, match="a mount point"):
        prepare_target(out, overwrite=True)


def test_real_mount_points_are_known() -> None:
    assert Path("/proc") in files._mount_points()


def test_what_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("file", "file/out"):
        with pytest.raises((SettingsError, WriteError), match=r"is a file|Not a directory"):
            prepare_target(tmp_path / name)
    refuse_existing(tmp_path / "new", False)
    with pytest.raises(SettingsError, match="is a file"):
        refuse_existing(tmp_path / "file", True)


def test_a_disk_that_is_read_only_is_a_sentence_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"cannot be written \(.+\); choose another place"):
        prepare_target(Path("/proc/normalcy"))


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with prepare_target(out):
        code = (
            f"from pathlib import Path\nfrom normalcy.files import prepare_target\nprepare_target(Path({str(out)!r}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "SettingsError" in done.stderr
        assert f"{out} is being written by another process" in done.stderr
        write_folder(out, put("1"))  # the one that holds it goes on
    write_folder(out, put("2"), overwrite=True)
    assert tree(tmp_path) == {"out/maps/a": "2", "out/run.json": "2"}


def test_a_lock_of_a_killed_process_does_not_bind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"""
        import os
        from pathlib import Path
        from normalcy.files import prepare_target
        held = prepare_target(Path({str(out)!r}))
        os._exit(9)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)]).returncode == 9
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
    write_folder(out, put("1"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, sys
from pathlib import Path
from normalcy import files

out, exchange, place, left = Path(sys.argv[1]), sys.argv[2] == "1", sys.argv[3], int(sys.argv[4])

def fill(folder):
    (folder / "maps").mkdir()
    (folder / "maps" / "a").write_text("2")
    (folder / "run.json").write_text("2")

def watched(step):
    def run(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os._exit(9)
        return step(*args, **kwargs)
    return run

if not exchange:
    def absent(one, other):
        raise OSError(38, "none")
    files._exchange = absent
files._exchange = watched(files._exchange)
for name in ("rename", "replace", "mkdir", "rmdir", "unlink"):
    setattr(os, name, watched(getattr(os, name)))
if place == "here":
    os.chdir(out)
files.write_folder(out, fill, overwrite=True)
"""


@pytest.mark.parametrize(
    ("exchange", "place", "old"),
    [(exchange, "beside", old) for exchange in (True, False) for old in ("nothing", "empty", "whole")]
    + [(True, "here", "empty"), (True, "here", "whole")],
)
def test_killed_before_any_change_of_a_name(tmp_path: Path, exchange: bool, place: str, old: str) -> None:
    """After each: what a reader finds is whole or absent; the next start repairs, loses nothing and leaves nothing."""
    kills = 0
    for number in range(1, 60):
        root = tmp_path / str(number)
        out = root / "out"
        root.mkdir()
        if old != "nothing":
            out.mkdir()
        if old == "whole":
            put("1")(out)
        words = [sys.executable, "-c", KILLED, str(out), str(int(exchange)), place, str(number)]
        code = subprocess.run(words, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}).returncode
        visible = {k: v for k, v in tree(out).items() if not k.startswith(".normalcy-")} if out.exists() else {}
        if "run.json" in visible:  # what readers look for first, written last
            assert len(set(visible.values())) == 1
        with prepare_target(out, overwrite=True):
            pass
        repaired = tree(root)
        whole = [{f"out/{name}": text for name in WHOLE} for text in ("1", "2")]
        assert repaired in ([whole[0], whole[1]] if old == "whole" else [{}, whole[1]]), (number, repaired)
        write_folder(out, put("3"), overwrite=True)
        assert tree(root) == {f"out/{name}": "3" for name in WHOLE}
        if code == 0:
            break
        assert code == 9
        kills += 1
    assert code == 0
    assert kills >= 3


# -- files


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    for mask, file, folder in ((0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)):
        before = os.umask(mask)
        try:
            out = tmp_path / oct(mask)
            write_folder(out, lambda partial: write_bytes(partial / "new" / "a", b"x"))
            files.append_text(out / "log", "x")
            assert files.mode_by_umask(out) == file
        finally:
            os.umask(before)
        assert {p.name: p.stat().st_mode & 0o777 for p in (out, *out.rglob("*"))} == {
            oct(mask): folder, "new": folder, "a": file, "log": file,
        }  # fmt: skip


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """/dev/full answers every write as a full disk does."""

    def fill(folder: Path) -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    with pytest.raises(
        WriteError, match=r"out: cannot be written \(No space left on device\); free some space"
    ) as caught:
        write_folder(tmp_path / "out", fill)
    assert caught.value.errno == 28
    with (
        pytest.raises(WriteError, match=r"a\.png: cannot be written \(No space"),
        files.writing(tmp_path / "a.png") as file,
    ):
        raise OSError(28, "No space left on device")
    assert file.closed
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_is_written_in_parts_and_never_over_another(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    files.write_new(tmp_path / "maps/a/1.npy", b"head", values.view(np.uint8).reshape(-1).data)
    assert (tmp_path / "maps/a/1.npy").read_bytes() == b"head" + values.tobytes()
    (tmp_path / "link").symlink_to("/dev/full")
    for taken in ("maps/a/1.npy", "link"):
        with pytest.raises(WriteError, match=rf"{taken}: cannot be written \(File exists\)"):
            files.write_new(tmp_path / taken, b"other")
    assert (tmp_path / "maps/a/1.npy").read_bytes() == b"head" + values.tobytes()


def test_a_full_disk_while_a_new_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(files, "open", lambda *_: full, raising=False)
        with pytest.raises(WriteError, match=r"a\.npy: cannot be written \(No space left on device\); free some space"):
            files.write_new(tmp_path / "a.npy", b"x")


def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = """
        import os, sys
        from pathlib import Path
        from normalcy.files import writing
        with writing(Path(sys.argv[1])) as file:
            file.write(b"half")
            file.flush()
            os._exit(9)
    """
    target = tmp_path / "metrics.json"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(target)]).returncode == 9
        assert [path.name[:10] for path in tmp_path.iterdir()] == [".normalcy-"], "one, however often"
    write_bytes(target, b"whole")
    assert tree(tmp_path) == {"metrics.json": "whole"}


def test_two_at_once_write_one_file(tmp_path: Path) -> None:
    """The one that ends last wins; neither takes the other's half for one that was left."""
    target = tmp_path / "a"
    with files.writing(target) as one, files.writing(target) as other:
        assert one.name != other.name
        one.write(b"one")
        other.write(b"other")
    assert tree(tmp_path) == {"a": "one"}


def test_a_link_in_the_place_of_a_half_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("private")
    with files.writing(tmp_path / "a") as file:
        place = Path(file.name)
    place.symlink_to(tmp_path / "private")
    write_bytes(tmp_path / "a", b"1")
    assert (tmp_path / "private").read_text() == "private"
    assert not (tmp_path / "a").is_symlink()


@pytest.mark.parametrize(
    ("reason", "told"),
    [(OSError(28, "No space left on device"), r"a\.pt: cannot be written \(No space"), (KeyboardInterrupt(), "")],
    ids=["full", "stopped"],
)
def test_an_error_hidden_behind_another_is_told(tmp_path: Path, reason: BaseException, told: str) -> None:
    """torch's archive complains about its position after a write to the file was refused or interrupted."""

    def save() -> None:
        with files.writing(tmp_path / "a.pt"):
            try:
                raise reason
            finally:
                raise RuntimeError("unexpected pos 38592 vs 38480")

    with pytest.raises(WriteError if told else KeyboardInterrupt, match=told or None):
        save()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_under_torch(tmp_path: Path) -> None:
    """A limit on the size of files is met in the middle of the archive, as a full disk is."""
    code = """
        import resource, sys, torch
        from normalcy.errors import WriteError
        from normalcy.files import writing
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            with writing(sys.argv[1]) as file:
                torch.save({str(i): torch.zeros(1000) for i in range(9)}, file)
        except WriteError as error:
            print(error)
    """
    words = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.pt")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert "a.pt: cannot be written (File too large); free some space" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_for_a_step_that_must_not_be_half_done(number: int) -> None:
    seen: list[str] = []

    def stop(*_: object) -> None:
        seen.append("signal")
        raise KeyboardInterrupt

    def step() -> None:
        with files.uninterrupted():
            signal.raise_signal(number)
            seen.append("step")

    before = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            step()
        assert seen == ["step", "signal"]
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)


def test_long_names_and_surrogates(tmp_path: Path) -> None:
    name = "x" * 250
    write_bytes(tmp_path / name, b"1")
    write_folder(tmp_path / ("y" * 250), put("1"))
    strange = os.fsdecode(b"caf\xe9")
    write_folder(tmp_path / strange, put("1"))
    with files.writing_text(tmp_path / "t.csv") as file:
        file.write(strange + "\r\n")
    assert (tmp_path / "t.csv").read_bytes() == b"caf\xe9\r\n"
    assert len(list(tmp_path.iterdir())) == 4


def test_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "elsewhere").mkdir()
    out.mkdir()
    (out / "link").symlink_to(tmp_path / "elsewhere")
    assert files.inside(out, "maps/../a.png") == out / "maps/../a.png"
    for name in ("../a.png", "a/../../b", str(tmp_path / "a.png"), "", ".", "link/a.png", "a\0b"):
        with pytest.raises(SettingsError, match="leads out of"):
            files.inside(out, name)


def test_new_arrays_take_their_place_at_once(tmp_path: Path) -> None:
    array = files.new_array(tmp_path / "a.npy", (3, 4))
    array[1] = 7
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 48
    del array
    assert (np.load(tmp_path / "a.npy")[1] == 7).all()
    assert (files.read_array(tmp_path / "a.npy")[1] == 7).all()


# -- reading


def special(folder: Path) -> dict[str, Path]:
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "socket"))
    return {
        "a pipe": folder / "pipe",
        "a socket": folder / "socket",
        "a device": Path("/dev/zero"),
        "a folder": folder,
    } | {"a pipe ": folder / "link"}


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    for kind, path in special(tmp_path).items():
        for reader in (files.read_bytes, files.read_json, files.read_toml, files.read_json_lines, files.read_array):
            with pytest.raises((DataError, ModelFileError, SettingsError), match="is not a regular file") as caught:
                reader(path)
            assert f"({kind.strip()})" in str(caught.value)
        assert files.read_head(path, 8) == b""
    with pytest.raises((DataError, WriteError), match=r"regular file|No such device"):
        files.append_text(tmp_path / "pipe", "x")


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with open(path, "wb") as file:
        file.truncate(2**40)  # a sparse file: no space on the disk
    with pytest.raises(DataError, match=r"has 1,099,511,627,776 bytes, at most 4,296,015,872 are read"):
        files.read_bytes(path)
    with pytest.raises(ModelFileError, match="bytes, at most"):
        files.read_json(path)
    write_bytes(path, b"12345")
    assert files.read_bytes(path, 5) == b"12345"
    with pytest.raises(DataError, match="has 5 bytes, at most 4"):
        files.read_bytes(path, 4)
    assert b"processor" in files.read_bytes("/proc/cpuinfo")


def test_gzip_and_zip_are_bounded(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(10**7))
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        files.bounded_gunzip(bomb, 1000)
    assert files.bounded_gunzip(bomb, 1000, whole=False) == bytes(1000)
    assert files.bounded_gunzip(bomb, 10**7) == bytes(10**7)
    assert files.bounded_gunzip(b"plain", 10) == b"plain"
    with pytest.raises(EOFError):
        files.bounded_gunzip(bomb[:-9], 10**7)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(10**6))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert files.read_member(archive, "a", 10**6) == bytes(10**6)
        with pytest.raises(ValueError, match="1,000,000 bytes when decompressed"):
            files.read_member(archive, "a", 10**6 - 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested"),
        ('{"a": 1e999}', "not finite"),
        ('{"a": Infinity}', "not finite"),
        ('{"a": NaN}', "not finite"),
        ('{"a": 1' + "0" * 400 + "}", "too large"),
        ('{"a": 1' + "0" * 10_000 + "}", "too large"),
        ("[1]", "JSON object"),
        ("\x80", "not valid JSON"),
    ],
)
def test_hostile_json_is_one_sentence(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelFileError, match=reason):
        files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = 1" + "0" * 10_000, "a =", "a = '\x80'"])
def test_hostile_toml_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match="not valid TOML"):
        files.read_toml(tmp_path / "a.toml")


def test_logs_keep_what_is_flat(tmp_path: Path) -> None:
    lines = ['{"step": 1}', '{"step": [[1]]}', "[" * 10_000, '{"step": 2', "3", '{"step": 3}']
    (tmp_path / "a").write_text("\n".join(lines))
    assert files.read_json_lines(tmp_path / "a") == [{"step": 1}, {"step": 3}]


def test_arrays_that_claim_too_much(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    data = (tmp_path / "a.npy").read_bytes()
    assert files.read_array(tmp_path / "a.npy").tolist() == [[0, 1, 2], [3, 4, 5]]
    for wrong in (data.replace(b"(2, 3)", b"(9, 9)"), data.replace(b"(2, 3)", b"(-2,3)"), data[:20], b"", b"x" * 99):
        (tmp_path / "b.npy").write_bytes(wrong)
        with pytest.raises(DataError, match=r"b\.npy: cannot be read as \.npy"):
            files.read_array(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.array([Path("x")], object), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects"):
        files.read_array(tmp_path / "c.npy")


@pytest.mark.parametrize(
    "text", ["{" * 3000, "{'a': " + "[" * 200, "", "\xff" * 100, "'" + "1" * 5000, "{'descr': '|O'}"]
)
def test_headers_of_arrays_are_never_python(tmp_path: Path, text: str) -> None:
    """NumPy parses them as Python text."""
    for version, form in ((b"\x01\x00", "<H"), (b"\x02\x00", "<I"), (b"\x03\x00", "<I")):
        header = text.encode("latin-1") + b"\n"
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY" + version + struct.pack(form, len(header)) + header + bytes(64))
        with pytest.raises(DataError, match=r"a\.npy: cannot be read as \.npy"):
            files.read_array(tmp_path / "a.npy")


def test_a_message_is_one_line_whatever_a_name_holds(tmp_path):
    with pytest.raises(DataError) as caught:
        open_regular(tmp_path / "a\nb\x1b[31m.png")
    assert "\\n" in str(caught.value)
    assert str(caught.value).isprintable()
