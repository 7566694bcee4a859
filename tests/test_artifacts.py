"""The results folder on its own: stage, check, seal, publish, find, discard; on real files."""

import errno
import hashlib
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from entropic.artifacts import ResultsFolder, Stage, Staged, find, moves
from entropic.artifacts import stage as stages
from entropic.errors import ResultMissingError, ResultsDirError

Content = bytes | dict[str, bytes]
"""Of a file; or of a folder, by relative path."""

OLD: dict[str, Content] = {"file": b"old", "folder": {"old": b"old", "more/old": b"old"}}
NEW: dict[str, Content] = {"file": b"newer", "folder": {"new": b"newer", "more/new": b"newer"}}


@pytest.fixture
def results(folder: Path) -> ResultsFolder:
    """An open results folder for ``.dat`` files."""
    return opened("results")


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Sets the umask, for the length of a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture(params=[False, True], ids=["renameat2", "without-renameat2"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This system as it is, and one whose file systems cannot rename in these special ways."""
    if request.param:
        monkeypatch.setattr(moves, "_renameat2", lambda *args: errno.ENOSYS)


def opened(path: str | Path, suffix: str = ".dat") -> ResultsFolder:
    """A results folder that is ready for use."""
    results = ResultsFolder(path, suffix)
    results.open()
    return results


def write(path: str | Path, content: Content) -> None:
    """Make a file or a folder."""
    path = Path(path)
    if isinstance(content, bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return
    for name, part in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(part)


def read(path: str | Path) -> Content:
    """What ``write`` made."""
    path = Path(path)
    if path.is_file():
        return path.read_bytes()
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def staged(
    results: ResultsFolder,
    content: Content = b"result",
    *,
    id: str = "a",
    token: int = 1,
    companions: dict[str, bytes] | None = None,
) -> tuple[Stage, Staged]:
    """A run that has ended, ready to be published."""
    stage = results.stage(id, token, "nonce")
    stages.make(stage)
    write(stage.result, content)
    if companions:
        write(stage.folder, companions)
    return stage, stages.check(stage, checksum=True, durable=False)


def publish(
    results: ResultsFolder, content: Content, ours: str | None = None, token: int = 1
) -> str:
    """Stage a run and publish it."""
    stage, found = staged(results, content, token=token)
    name = results.publish(stage, found, "a", ours)
    results.discard(stage)
    return name


def remove(
    results: ResultsFolder, name: str, id: str = "a", *, has_companions: bool = True
) -> None:
    """Take a result out, and remove it."""
    removal = results.removal(id, 1, "nonce")
    results.take_out(removal, name, id, has_companions=has_companions)
    removal.finish()


def names(path: str | Path = "results") -> list[str]:
    """What a folder shows, without entropic's private corner."""
    return sorted(name for name in os.listdir(path) if name != ".entropic")


def mode(path: str | Path) -> int:
    """The permission bits of a path itself."""
    return stat.S_IMODE(os.lstat(path).st_mode)


# A leftover, and something outside of the results folder that it may point to.
LEFTOVERS: dict[str, Callable[[Path], None]] = {
    "file": lambda path: write(path, b"theirs"),
    "empty-file": lambda path: path.touch(),
    "folder": lambda path: write(path, {"theirs": b"theirs"}),
    "empty-folder": lambda path: path.mkdir(),
    "link-to-file": lambda path: path.symlink_to(Path("outside.dat").absolute()),
    "link-to-folder": lambda path: path.symlink_to(Path("outside").absolute()),
    "dangling-link": lambda path: path.symlink_to("nowhere"),
    "fifo": os.mkfifo,
}


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("kind", NEW)
@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_a_name_that_is_taken_is_left_alone(
    results: ResultsFolder, leftover: str, kind: str
) -> None:
    """Whatever lies under the final name stays as it is, and so does what it points to."""
    write("outside.dat", b"outside")
    write("outside", {"outside": b"outside"})
    taken = Path("results/a.dat")
    LEFTOVERS[leftover](taken)
    before = os.lstat(taken)

    assert publish(results, NEW[kind]) == "a.1.dat"

    assert read("results/a.1.dat") == NEW[kind]
    after = os.lstat(taken)
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (
        before.st_ino,
        before.st_mode,
        before.st_mtime_ns,
    )
    assert read("outside.dat") == b"outside"
    assert read("outside") == {"outside": b"outside"}
    assert publish(results, NEW[kind], token=2) == "a.2.dat"


@pytest.mark.usefixtures("system")
def test_a_free_name_is_given_to_one_alone(results: ResultsFolder) -> None:
    """Runs that are published at once never share a name, nor overwrite each other."""
    runs = [staged(results, f"{n:04}".encode(), token=n) for n in range(12)]
    together = threading.Barrier(len(runs))

    def go(run: tuple[Stage, Staged]) -> str:
        together.wait(10)
        return results.publish(*run, "a", None)

    with ThreadPoolExecutor(len(runs)) as pool:
        given = list(pool.map(go, runs))
    assert sorted(given) == names()
    assert len(set(given)) == len(runs)
    assert [read(f"results/{name}") for name in given] == [f"{n:04}".encode() for n in range(12)]


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("new", NEW)
@pytest.mark.parametrize("old", OLD)
def test_our_own_result_is_replaced_by_the_new_one(
    results: ResultsFolder, old: str, new: str
) -> None:
    """A file or a folder, by either; nothing of the old one stays."""
    name = publish(results, OLD[old])
    assert publish(results, NEW[new], name, token=2) == name == "a.dat"
    assert read("results/a.dat") == NEW[new]
    assert names() == ["a.dat"]
    assert os.listdir("results/.entropic/staging") == []


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("kind", NEW)
@pytest.mark.parametrize("target", ["outside.dat", "outside", "nowhere"])
def test_a_link_in_our_place_is_replaced_and_not_followed(
    results: ResultsFolder, kind: str, target: str
) -> None:
    """A re-run over a planted symbolic link changes nothing at its other end."""
    write("outside.dat", b"outside")
    write("outside", {"outside": b"outside"})
    Path("results/a.dat").symlink_to(Path(target).absolute())

    assert publish(results, NEW[kind], "a.dat") == "a.dat"

    assert not Path("results/a.dat").is_symlink()
    assert read("results/a.dat") == NEW[kind]
    assert read("outside.dat") == b"outside"
    assert read("outside") == {"outside": b"outside"}
    assert not os.path.lexists("nowhere")


@pytest.mark.parametrize("kind", NEW)
def test_readers_see_the_old_result_or_the_new_one(results: ResultsFolder, kind: str) -> None:
    """Through a hundred re-runs, a reader that polls never finds none, and none by halves."""
    versions: list[Content] = [
        b"%d" % n if kind == "file" else {f"{n}.{part}": b"x" for part in range(3)}
        for n in range(2)
    ]
    publish(results, versions[0])
    is_over = threading.Event()

    def poll() -> set[frozenset[str] | bytes]:
        seen: set[frozenset[str] | bytes] = set()
        while not is_over.is_set():
            if kind == "file":
                seen.add(Path("results/a.dat").read_bytes())
            else:
                seen.add(frozenset(os.listdir("results/a.dat")))
        return seen

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(poll)
        for token in range(1, 101):
            publish(results, versions[token % 2], "a.dat", token=token + 1)
        is_over.set()
        seen = reader.result(10)
    assert seen
    for found in seen:
        # A folder that is listed while it is replaced may lose files under the reader's hands;
        # those of two versions are never seen together.
        if isinstance(found, bytes):
            assert found in versions
        else:
            assert any(isinstance(v, dict) and found <= v.keys() for v in versions), found


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("ours", ["a.dat", "a.old", None])
@pytest.mark.parametrize("companions", ["none", "before", "after", "both"])
@pytest.mark.parametrize("new", NEW)
@pytest.mark.parametrize("old", OLD)
def test_a_publication_can_be_withdrawn_and_made_again(
    results: ResultsFolder, old: str, new: str, companions: str, ours: str | None
) -> None:
    """What it replaced has its name again, and what was staged is staged, as often as need be."""
    before = {"log": b"old"} if companions in ("before", "both") else None
    after = {"log": b"newer"} if companions in ("after", "both") else None
    if ours is not None:
        earlier = opened("results", Path(ours).suffix)
        stage, found = staged(earlier, OLD[old], companions=before)
        assert earlier.publish(stage, found, "a", None) == ours
        earlier.discard(stage)
    there = {path: read(path) for path in Path("results").glob("*") if path.name != ".entropic"}
    stage, found = staged(results, NEW[new], token=2, companions=after)
    for _ in range(2):
        name = results.publish(stage, found, "a", ours)
        assert read(f"results/{name}") == NEW[new]
        results.withdraw(stage, found, "a", name)
        assert {Path("results", name): read(f"results/{name}") for name in names()} == there
        assert found.is_whole_at(stage.result)
        assert not after or read(stage.companions) == after
    name = results.resume(stage, found, "a", ours)
    assert read(f"results/{name}") == NEW[new]
    assert (read("results/a.files") if Path("results/a.files").exists() else None) == after


def test_an_old_result_survives_a_replacement_that_fails(
    results: ResultsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where folders cannot change places, the old one is put back if the new one cannot come."""
    monkeypatch.setattr(moves, "_renameat2", lambda *args: errno.ENOSYS)
    publish(results, OLD["folder"])
    stage, found = staged(results, NEW["folder"], token=2)
    os.rename(stage.result, f"{stage.result}.lost")
    with pytest.raises(ResultsDirError):
        results.publish(stage, found, "a", "a.dat")
    assert read("results/a.dat") == OLD["folder"]


def test_companions_are_published_beside_the_result(results: ResultsFolder) -> None:
    """Files and folders that the runner left go to ``<id>.files/``, with a number or without."""
    left = {"log.txt": b"log", "plots/a.png": b"png", ".hidden": b"hidden"}
    for number, name in enumerate(["a", "a.1"]):
        stage, found = staged(results, companions=left, token=number)
        assert found.companions == (".hidden", "log.txt", "plots")
        assert results.publish(stage, found, "a", None) == f"{name}.dat"
        assert read(f"results/{name}.files") == left
    assert names() == ["a.1.dat", "a.1.files", "a.dat", "a.files"]


@pytest.mark.parametrize("name", [".files", ".sidecar.json", ".files.0", ".sidecar.json.draft"])
def test_companions_may_be_called_as_entropics_own_files(results: ResultsFolder, name: str) -> None:
    """A runner's file never gets in the way of what entropic puts into the stage."""
    stage, found = staged(results, companions={name: b"mine", "other": b"other"})
    stages.seal(stage, {"about": "it"}, durable=False)
    assert set(found.companions) == {name, "other"}
    assert read(stage.companions) == {name: b"mine", "other": b"other"}
    assert json.loads(Path(stage.sidecar).read_text()) == {"about": "it"}


def test_companions_of_a_rerun_replace_those_of_the_run(results: ResultsFolder) -> None:
    """The new ones take the old ones' place; a re-run without any removes them."""
    for token, left in enumerate([{"one": b"1"}, {"two": b"2"}, {}]):
        stage, found = staged(results, companions=left, token=token)
        results.publish(stage, found, "a", "a.dat" if token else None)
        results.discard(stage)
        assert names() == (["a.dat", "a.files"] if left else ["a.dat"])
        if left:
            assert read("results/a.files") == left
    assert os.listdir("results/.entropic/staging") == []


def test_a_folder_in_the_companions_place_makes_the_name_taken(results: ResultsFolder) -> None:
    """A first run whose companions would have no place takes the next number for both."""
    write("results/a.files", {"theirs": b"theirs"})
    stage, found = staged(results, companions={"log": b"log"})
    assert results.publish(stage, found, "a", None) == "a.1.dat"
    assert read("results/a.files") == {"theirs": b"theirs"}
    assert read("results/a.1.files") == {"log": b"log"}


@pytest.mark.parametrize("left", [{}, {"log": b"log"}], ids=["without", "with-companions"])
def test_a_rerun_leaves_companions_that_are_not_its_own(
    results: ResultsFolder, left: dict[str, bytes]
) -> None:
    """``a.files`` of somebody else is neither replaced nor removed; the result moves aside."""
    publish(results, b"old")
    write("results/a.files", {"theirs": b"theirs"})
    stage, found = staged(results, b"newer", companions=left, token=2)
    name = results.publish(stage, found, "a", "a.dat", has_companions=False)
    results.discard(stage)
    assert name == ("a.1.dat" if left else "a.dat")
    assert read("results/a.files") == {"theirs": b"theirs"}
    assert read(f"results/{name}") == b"newer"
    assert names() == (["a.1.dat", "a.1.files", "a.files"] if left else ["a.dat", "a.files"])


SUFFIXES = ["", ".dat", ".7z", "_out", "x"]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".1"])
@pytest.mark.parametrize("other", SUFFIXES[1:])
@pytest.mark.parametrize("is_taken", [False, True], ids=["free", "taken"])
def test_a_folder_with_another_suffix_touches_nothing_but_its_own(
    folder: Path, suffix: str, other: str, is_taken: bool
) -> None:
    """Names with numbers and odd suffixes: what is removed, or replaced, is never another's."""
    results = opened("results", suffix)
    write(f"results/a{suffix}", b"theirs") if is_taken else None
    for id in ("b", "a.1", "a.2"):  # their names are like those of a's
        results.publish(*staged(results, companions={"log": b"log"}, id=id), id, None)
    before = {path: path.read_bytes() for path in folder.glob("results/*") if path.is_file()}
    before |= {path: path.read_bytes() for path in folder.glob("results/*.files/*")}
    stage, found = staged(results, companions={"log": b"log"}, id="a")
    name = results.publish(stage, found, "a", None)
    again = opened("results", other)
    stage, found = staged(again, b"newer", companions={"log": b"log"}, id="a", token=2)
    renamed = again.publish(stage, found, "a", name)
    assert read(f"results/{renamed}") == b"newer"
    assert renamed.endswith(other)
    assert (renamed == name) == (suffix == other)
    assert renamed == name or not os.path.exists(f"results/{name}")
    remove(again, renamed, has_companions=True)
    assert all(path.exists() and path.read_bytes() == before[path] for path in before)


def test_removing_a_result_leaves_companions_that_are_not_its_own(results: ResultsFolder) -> None:
    """Only what was published with the result goes with it; what is gone already is no error."""
    publish(results, b"result")
    write("results/a.files", {"theirs": b"theirs"})
    remove(results, "a.dat", has_companions=False)
    assert names() == ["a.files"]
    remove(results, "a.dat")
    assert names() == []
    remove(results, "a.dat")


def test_removing_follows_no_link(results: ResultsFolder) -> None:
    """A link in the place of a result, of its companions or inside a folder: only it goes."""
    write("outside", {"outside": b"outside"})
    outside = Path("outside").absolute()
    write("results/a.dat", {"inside": b"inside"})
    Path("results/a.dat/link").symlink_to(outside)
    Path("results/a.files").symlink_to(outside)
    remove(results, "a.dat")
    Path("results/b.dat").symlink_to(outside)
    remove(results, "b.dat", "b")
    assert names() == []
    assert read("outside") == {"outside": b"outside"}


@pytest.mark.parametrize("where", [".entropic", ".entropic/staging"])
@pytest.mark.parametrize("what", ["link", "dangling", "file"])
def test_a_private_corner_that_is_no_folder_is_refused(folder: Path, where: str, what: str) -> None:
    """Planted links and files are an error that names them; nothing is written elsewhere."""
    outside = folder / "outside"
    outside.mkdir()
    planted = folder / "results" / where
    planted.parent.mkdir(parents=True)
    if what == "file":
        planted.touch()
    else:
        planted.symlink_to(outside if what == "link" else folder / "nowhere")
    with pytest.raises(ResultsDirError, match="must be a folder of entropic's own") as caught:
        opened("results")
    assert caught.value.path == str(planted)
    assert isinstance(caught.value, OSError)
    assert list(outside.iterdir()) == []
    assert not (folder / "nowhere").exists()


@pytest.mark.parametrize("what", ["link", "folder", "file"])
def test_a_staging_name_that_is_taken_is_not_written_into(
    results: ResultsFolder, folder: Path, what: str
) -> None:
    """Tokens never repeat: what lies under a stage's name was planted."""
    outside = folder / "outside"
    outside.mkdir()
    stage = results.stage("a", 1, "nonce")
    if what == "link":
        Path(stage.folder).symlink_to(outside)
    else:
        write(stage.folder, {"x": b"x"} if what == "folder" else b"x")
    with pytest.raises(ResultsDirError, match="cannot be made") as caught:
        stages.make(stage)
    assert caught.value.path == stage.folder
    assert list(outside.iterdir()) == []


def test_discarding_follows_no_link(results: ResultsFolder, folder: Path) -> None:
    """Links in a stage, or in its place, are removed; what they point to stays."""
    write("outside", {"outside": b"outside"})
    stage, _ = staged(results)
    (Path(stage.folder) / "link").symlink_to(folder / "outside")
    results.discard(stage)
    assert not os.path.lexists(stage.folder)
    Path(stage.folder).symlink_to(folder / "outside")
    results.discard(stage)
    assert not os.path.lexists(stage.folder)
    assert read("outside") == {"outside": b"outside"}
    results.discard(stage)


@pytest.mark.parametrize(
    ("mask", "shared", "expected"),
    [(0o022, False, 0o700), (0o002, True, 0o770), (0o022, True, 0o700), (0o002, False, 0o700)],
)
def test_the_private_corner_is_private_unless_the_group_shares(
    folder: Path, umask: Callable[[int], int], mask: int, shared: bool, expected: int
) -> None:
    """0700; 0770 only where both the folder and the umask let the group write."""
    results = folder / "results"
    results.mkdir()
    results.chmod(0o770 if shared else 0o750)
    umask(mask)
    opened(results)
    assert mode(results / ".entropic") == expected
    assert mode(results / ".entropic" / "staging") == expected
    (results / ".entropic").chmod(0o750)
    opened(results)
    assert mode(results / ".entropic") == 0o750


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_new_files_follow_the_umask(folder: Path, umask: Callable[[int], int], mask: int) -> None:
    """Results, companions and the folder itself are as open as whatever else the user makes."""
    umask(mask)
    results = opened("new/results")
    stage, found = staged(results, companions={"log": b"log"})
    results.publish(stage, found, "a", None)
    stage, found = staged(results, {"part": b"part"}, id="b")
    results.publish(stage, found, "b", None)
    for path in ("new", "new/results", "new/results/a.files", "new/results/b.dat"):
        assert mode(path) == 0o777 & ~mask, path
    for path in ("a.dat", "a.files/log", "b.dat/part"):
        assert mode(f"new/results/{path}") == 0o666 & ~mask, path


def test_a_folder_keeps_its_id_when_it_moves(results: ResultsFolder) -> None:
    """The id belongs to the folder, not to its path; another folder has another one."""
    os.rename("results", "moved")
    assert opened("moved").id == results.id
    assert opened("results").id not in ("", results.id)


def test_many_may_open_a_new_folder_at_once(folder: Path) -> None:
    """They agree on its id, and leave nothing but the id and the staging area."""
    together = threading.Barrier(8)

    def go(_: int) -> str:
        together.wait(10)
        return opened(folder / "results").id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(go, range(8)))) == 1
    assert sorted(os.listdir("results/.entropic")) == ["folder", "staging"]


def test_an_id_that_was_lost_is_made_anew(results: ResultsFolder) -> None:
    """An empty id, as a power failure leaves one, would be the same for every such folder."""
    Path("results/.entropic/folder").write_bytes(b"")
    again = opened("results")
    assert again.id not in ("", results.id)
    assert opened("results").id == again.id


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.touch(), "it is a file"),
        (lambda path: path.parent.rmdir() or path.parent.touch(), "a part of the path is a file"),
        (lambda path: path.symlink_to("/nowhere/at/all"), "symbolic link to '/nowhere/at/all'"),
    ],
    ids=["file", "below-a-file", "dangling-link"],
)
def test_a_path_that_cannot_be_a_folder_is_explained(
    folder: Path, make: Callable[[Path], None], message: str
) -> None:
    """The message names the path as it was spelled, and what is in the way."""
    path = folder / "some" / "results"
    path.parent.mkdir()
    make(path)
    with pytest.raises(ResultsDirError, match=message) as caught:
        opened("some/results")
    assert "'some/results'" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_link_to_a_folder_is_as_good_as_the_folder(folder: Path) -> None:
    """``results_dir`` itself may be a symbolic link: it is the user's own."""
    (folder / "real").mkdir()
    (folder / "results").symlink_to("real")
    publish(opened("results"), b"result")
    assert names("real") == ["a.dat"]


def test_a_digest_is_that_of_the_file(results: ResultsFolder) -> None:
    """SHA-256, as ``sha256sum`` shows it."""
    stage, found = staged(results, b"result")
    digest = hashlib.sha256(b"result").hexdigest()
    about = Path(stage.result).stat()
    assert found == Staged(6, False, (), digest, about.st_ino, about.st_mtime_ns)


@pytest.mark.parametrize("kind", NEW)
@pytest.mark.parametrize("checksum", [False, True])
def test_a_file_whose_number_came_round_again_is_not_taken_for_the_result(
    results: ResultsFolder, kind: str, checksum: bool
) -> None:
    """Where a killed owner may have published, somebody else's of the same size is left alone."""
    stage = results.stage("a", 1, "nonce")
    stages.make(stage)
    write(stage.result, NEW[kind])
    found = stages.check(stage, checksum=checksum, durable=False)
    published = Path("results", results.publish(stage, found, "a", None))
    assert results.can_resume(stage, found, "a")

    part = published / "more/new" if kind == "folder" else published
    part.write_bytes(b"their" if kind == "file" else b"longer than it was")

    if kind == "file":
        os.utime(part, ns=(0, found.mtime_ns + 1))
        with pytest.raises(ResultsDirError, match="no longer in"):
            results.resume(stage, found, "a", None)
    assert not results.can_resume(stage, found, "a")


def test_a_digest_of_a_folder_covers_names_and_contents(results: ResultsFolder) -> None:
    """Equal folders have equal digests, in whichever order they were written; others do not."""
    folders: list[dict[str, bytes]] = [
        {"a": b"1", "b/c": b"2"},
        {"b/c": b"2", "a": b"1"},
        {"a": b"2", "b/c": b"1"},
        {"a": b"1", "b/d": b"2"},
        {"a": b"12"},
    ]
    digests = []
    for token, content in enumerate(folders):
        stage, found = staged(results, content, token=token)
        assert (found.size, found.is_folder) == (sum(map(len, content.values())), True)
        digests.append(found.digest)
        results.discard(stage)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_names_that_are_no_unicode_are_no_obstacle(results: ResultsFolder) -> None:
    """File names are bytes; a result and its companions may hold any."""
    stage = results.stage("a", 1, "nonce")
    stages.make(stage)
    for path in (stage.result, os.path.join(stage.folder, "other")):
        os.mkdir(path)
        Path(path, os.fsdecode(b"\xff")).write_bytes(b"x")
    Path(stage.folder, os.fsdecode(b"\xfe")).write_bytes(b"x")
    found = stages.check(stage, checksum=True, durable=True)
    stages.seal(stage, {"companions": found.companions}, durable=True)
    results.publish(stage, found, "a", None)
    assert os.listdir(b"results/a.dat") == [b"\xff"]
    assert sorted(os.listdir(b"results/a.files")) == [b"other", b"\xfe"]


def test_links_in_a_result_are_kept_and_not_followed(results: ResultsFolder) -> None:
    """They count for nothing: neither their target's size nor its content is the run's."""
    write("outside", {"large": b"x" * 1000})
    stage = results.stage("a", 1, "nonce")
    stages.make(stage)
    write(stage.result, {"own": b"own"})
    Path(stage.result, "folder").symlink_to(Path("outside").absolute())
    Path(stage.result, "file").symlink_to(Path("outside/large").absolute())
    Path(stage.result, "dangling").symlink_to("nowhere")
    found = stages.check(stage, checksum=True, durable=True)
    assert found.size == 3
    results.publish(stage, found, "a", None)
    assert Path("results/a.dat/folder").is_symlink()


def test_a_stage_that_the_runner_removed_is_a_missing_result(results: ResultsFolder) -> None:
    """The runner's own clean-up is told as what it did, not as an error of entropic's."""
    stage, _ = staged(results)
    results.discard(stage)
    with pytest.raises(ResultMissingError, match="the folder itself is gone"):
        stages.check(stage, checksum=True, durable=False)


def test_a_stage_in_a_folder_that_has_gone_is_explained(results: ResultsFolder) -> None:
    """The results folder was removed under an open store: that is what the error says."""
    os.rename("results", "elsewhere")
    stage = results.stage("a", 1, "nonce")
    with pytest.raises(ResultsDirError, match="results folder is no longer there"):
        stages.make(stage)


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_run_is_synced_to_its_last_folder(
    results: ResultsFolder, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """Every file, every folder that names one, and the sidecar; the latter before its rename."""
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    stage = results.stage("a", 1, "nonce")
    stages.make(stage)
    write(stage.result, {"part": b"x", "deep/er/part": b"x"})
    write(stage.folder, {"log": b"x", "plots/one": b"x"})
    monkeypatch.setattr(os, "fsync", noted)
    stages.check(stage, checksum=False, durable=durable)
    stages.seal(stage, {}, durable=durable)
    relative = [os.path.relpath(path, stage.folder) for path in synced]
    if not durable:
        assert relative == []
        return
    inside = {"a.dat", "a.dat/part", "a.dat/deep", "a.dat/deep/er", "a.dat/deep/er/part"}
    inside |= {".files", ".files/log", ".files/plots", ".files/plots/one"}
    sidecar = relative.index(".sidecar.json.draft")
    assert inside <= set(relative[:sidecar])
    # The names: of the sidecar in the stage, and of the stage in the staging area.
    assert relative[sidecar + 1 :] == [".", ".."]


def test_a_folder_that_cannot_be_synced_loses_no_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems refuse fsync of a folder; that of a file must still work."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    write("file", b"x")
    monkeypatch.setattr(os, "fsync", refuse)
    moves.fsync(str(folder))
    with pytest.raises(OSError, match="Invalid argument"):
        moves.fsync("file")


def test_a_stage_may_be_taken_over_as_soon_as_it_is_sealed(
    results: ResultsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner hears of that when it comes to publish it; to seal it has not failed."""
    stage, _ = staged(results)
    theirs = results.stage("a", 2, "nonce")
    rename = os.rename

    def taken_over(source: str, target: str) -> None:
        rename(source, target)
        if target == stage.sidecar:
            assert results.take_over(stage, theirs)

    monkeypatch.setattr(os, "rename", taken_over)
    stages.seal(stage, {}, durable=True)
    assert theirs.has_sidecar


def test_a_sidecar_is_whole_or_not_there(results: ResultsFolder) -> None:
    """One that cannot be written leaves no half of it under its name."""
    stage, _ = staged(results)
    with pytest.raises(TypeError):
        stages.seal(stage, {"good": 1, "bad": object()}, durable=False)
    assert not os.path.lexists(stage.sidecar)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: path.write_bytes(b"abc"), 3),
        (lambda path: write(path, {"part": b"abc"}), None),
        (lambda path: path.touch(), "nothing"),
        (lambda path: path.mkdir(), "nothing"),
        (lambda path: None, "nothing"),
        (lambda path: path.symlink_to("nowhere"), "nothing"),
        (os.mkfifo, "nothing"),
    ],
    ids=["file", "folder", "empty-file", "empty-folder", "none", "dangling-link", "fifo"],
)
def test_a_result_is_a_file_or_folder_with_content(
    folder: Path, make: Callable[[Path], None], expected: int | str | None
) -> None:
    """All else is no result."""
    make(folder / "a.dat")
    found = find("a.dat")
    assert (found.size if found else "nothing") == expected


def located(results: ResultsFolder, stored: str = "results/a.dat", **known: object) -> str | None:
    """Look for the result of the run ``a``, published by ``results``, of three bytes."""
    given = {"name": "a.dat", "folder": results.id, "registered": None, "size": 3, **known}
    return results.locate("a", stored, **given)  # type: ignore[arg-type]


def test_a_result_is_found_as_long_as_it_is_whole(results: ResultsFolder) -> None:
    """Gone, empty, cut short, grown, or a folder instead of a file: all are none."""
    path = Path("results/a.dat")
    assert located(results) is None
    for content, found in [(b"abc", True), (b"ab", False), (b"abcd", False), (b"", False)]:
        path.write_bytes(content)
        assert located(results) == ("results/a.dat" if found else None), content
    path.unlink()
    write(path, {"part": b"abc"})
    assert located(results) is None
    assert located(results, size=None) == "results/a.dat"


def test_a_result_is_given_by_a_path_that_works_here(
    results: ResultsFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the user spelled it; after a change of directory, by the absolute path."""
    write("results/a.dat", b"abc")
    other = folder / "other"
    write(other / "results" / "a.dat", b"xyz")
    monkeypatch.chdir(other)
    assert located(results) == str(folder / "results" / "a.dat")
    gone = other / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert located(results) == str(folder / "results" / "a.dat")
    monkeypatch.chdir(folder)
    assert located(results) == "results/a.dat"


def test_a_folder_that_went_away_is_an_error_and_no_miss(results: ResultsFolder) -> None:
    """Removed, or unmounted so that an empty folder is left: nothing can be said of its runs."""
    os.rename("results", "elsewhere")
    with pytest.raises(ResultsDirError, match="mount it"):
        located(results)
    os.mkdir("results")
    with pytest.raises(ResultsDirError, match="mount it"):
        located(results)
    os.rmdir("results")
    os.rename("elsewhere", "results")
    assert located(results) is None


def test_a_result_of_another_folder_is_found_there(results: ResultsFolder) -> None:
    """Two stores on one database: a file gone from the other's folder is a miss, no error."""
    other = opened("other")
    publish(other, b"abc")
    assert located(results, "other/a.dat", folder=other.id) == "other/a.dat"
    os.unlink("other/a.dat")
    assert located(results, "other/a.dat", folder=other.id) is None
    write("results/a.dat", b"abc")
    assert located(results, "other/a.dat", folder=other.id) is None
    os.rename("other", "elsewhere")
    os.unlink("results/a.dat")
    with pytest.raises(ResultsDirError, match="'other'"):
        located(results, "other/a.dat", folder=other.id)


def test_copied_results_are_found_without_their_folders_id(results: ResultsFolder) -> None:
    """``cp results/* copy/`` leaves the hidden corner behind; the results are good all the same."""
    write("results/a.dat", b"abc")
    assert located(results, "lost/a.dat", folder="lost") == "results/a.dat"
    write("results/a.dat", b"abcd")
    assert located(results, "lost/a.dat", folder="lost") is None


def test_a_path_of_the_same_spelling_in_another_folder_is_not_trusted(
    results: ResultsFolder,
) -> None:
    """``other/a.dat`` here may be another project's; its folder says so."""
    other = opened("other")
    publish(other, b"abc")
    with pytest.raises(ResultsDirError):
        located(results, "other/a.dat", folder="lost")
    assert located(results, "other/a.dat", folder=other.id) == "other/a.dat"


def test_a_registered_result_is_the_one_that_was_registered(
    results: ResultsFolder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another directory, a file of the same spelling and size is not mistaken for it."""
    write("made.dat", b"abc")
    made = str(folder / "made.dat")
    known: dict[str, object] = {"name": None, "folder": None, "registered": made}
    assert located(results, "made.dat", **known) == "made.dat"
    other = folder / "other"
    write(other / "made.dat", b"xyz")
    monkeypatch.chdir(other)
    assert located(results, "made.dat", **known) == made
    # The whole project has moved: the path as it was given leads to it.
    os.unlink(made)
    assert located(results, "made.dat", **known) == "made.dat"
    os.unlink("made.dat")
    assert located(results, "made.dat", **known) is None


def test_a_registered_result_whose_folder_is_gone_is_an_error(results: ResultsFolder) -> None:
    """Never mounted, or another machine: the message names the folder."""
    known: dict[str, object] = {"name": None, "folder": None, "registered": "/nowhere/made.dat"}
    with pytest.raises(ResultsDirError, match=r"'/nowhere'.*register it again"):
        located(results, "/nowhere/made.dat", **known)


def test_results_of_entropic_2_are_found_by_their_names(results: ResultsFolder) -> None:
    """Rows of 2.x know no folder; an empty one is not taken for theirs."""
    known: dict[str, object] = {"name": None, "folder": None, "size": None}
    with pytest.raises(ResultsDirError, match="mount it"):
        located(results, "lost/a.dat", **known)
    with pytest.raises(ResultsDirError, match="mount it"):
        located(results, "./results/a.dat", **known)
    write("results/b.dat", b"another result")
    assert located(results, "./results/a.dat", **known) is None
    write("results/a.dat", b"abc")
    assert located(results, "lost/a.dat", **known) == "results/a.dat"
    # A registered one of 2.x: only its path says where it is.
    write("made.dat", b"abc")
    write("results/made.dat", b"another one")
    assert located(results, "made.dat", **known) == "made.dat"


def test_a_stage_that_cannot_be_taken_over_is_an_error(results: ResultsFolder) -> None:
    """Only where it is gone was somebody else faster."""
    theirs, ours = (results.stage("a", token, "nonce") for token in (1, 2))
    assert not results.take_over(theirs, ours)
    for stage in (theirs, ours):
        write(f"{stage.folder}/file", b"x")
    with pytest.raises(ResultsDirError, match="cannot be used"):
        results.take_over(theirs, ours)
    assert Path(theirs.folder, "file").exists()


def test_a_folder_that_may_be_written_no_more_is_seen_when_it_is_opened_again(
    results: ResultsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was before does not count."""
    assert results.is_writable
    monkeypatch.setattr(os, "access", lambda *_: False)
    results.open()
    assert not results.is_writable
