"""The KEKs of a pool: which one seals, which ones open, and that new files are noticed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipeline.assignment.administration import Resealed
from pipeline.assignment.records import KeyRecord, KeyState
from pipeline.assignment.view import View
from pipeline.custody.generation import address_of
from pipeline.custody.kek_ring import KekRing, next_of, previous_of
from pipeline.custody.sealing import Kek, kek_id_of
from pipeline.errors import SecretFileError
from pipeline.stages import intake

SECRET = b"\x11" * 32
ADDRESS = address_of(SECRET)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Kek.create(tmp_path / "kek")
    return tmp_path / "kek"


def test_one_kek_seals_and_opens(path: Path) -> None:
    ring = KekRing(path)
    sealed = ring.seal(SECRET, ADDRESS)
    assert (ring.id, ring.ids) == (Kek.load(path).id, (Kek.load(path).id,))
    assert bytes(ring.unseal(sealed, ADDRESS).reveal()) == SECRET
    assert ring.is_current(sealed)


def test_the_next_one_seals_and_both_open(path: Path) -> None:
    before = KekRing(path).seal(SECRET, ADDRESS)
    made = Kek.create(next_of(path))
    ring = KekRing(path)
    after = ring.resealed(before, ADDRESS)
    assert ring.ids == (made.id, Kek.load(path).id)
    assert (kek_id_of(before), kek_id_of(after)) == (ring.ids[1], made.id)
    assert not ring.is_current(before)
    for sealed in (before, after):
        assert bytes(ring.unseal(sealed, ADDRESS).reveal()) == SECRET


def test_the_previous_one_only_opens(path: Path) -> None:
    old = Kek.create(previous_of(path))
    ring = KekRing(path)
    assert kek_id_of(ring.seal(SECRET, ADDRESS)) == Kek.load(path).id
    assert bytes(ring.unseal(old.seal(SECRET, ADDRESS), ADDRESS).reveal()) == SECRET


def test_a_kek_that_comes_later_is_found_when_it_is_needed(path: Path) -> None:
    ring = KekRing(path)
    made = Kek.create(next_of(path))
    assert bytes(ring.unseal(made.seal(SECRET, ADDRESS), ADDRESS).reveal()) == SECRET
    assert ring.id == made.id


def test_a_kek_that_is_gone_from_the_files_still_opens_what_is_under_way(path: Path) -> None:
    ring = KekRing(path)
    sealed = ring.seal(SECRET, ADDRESS)
    path.unlink()
    Kek.create(path)
    ring.look()
    assert bytes(ring.unseal(sealed, ADDRESS).reveal()) == SECRET
    with pytest.raises(SecretFileError, match="was sealed by KEK"):
        KekRing(path).unseal(sealed, ADDRESS)


def test_what_nobody_sealed_is_refused(path: Path) -> None:
    with pytest.raises(SecretFileError, match="was sealed by KEK"):
        KekRing(path).unseal(Kek(bytes(32)).seal(SECRET, ADDRESS), ADDRESS)
    with pytest.raises(SecretFileError, match="not one of this version"):
        KekRing(path).unseal(b"", ADDRESS)


def test_a_next_kek_that_cannot_be_used_is_named(path: Path) -> None:
    next_of(path).write_bytes(b"short")
    next_of(path).chmod(0o600)
    with pytest.raises(SecretFileError, match=r"kek\.next: holds 5 bytes"):
        KekRing(path)


def test_it_prints_ids_and_is_not_pickled(path: Path) -> None:
    ring = KekRing(path)
    assert repr(ring) == f"<KekRing {ring.id.hex()}>"
    assert path.read_text().strip() not in repr(vars(ring))
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(ring)


def test_only_what_another_kek_sealed_is_sealed_anew(path: Path) -> None:
    other = b"\x22" * 32
    view = View(sealed={ADDRESS: KekRing(path).seal(SECRET, ADDRESS)})
    Kek.create(next_of(path))
    ring = KekRing(path)
    view.sealed[address_of(other)] = ring.seal(other, address_of(other))
    assert "2 keys; 1 are to be sealed by the first" in intake.opened(view, ring)
    [resealed] = intake.resealed(view, ring)
    assert (resealed.address, resealed.before) == (ADDRESS, view.sealed[ADDRESS])
    view.sealed[ADDRESS] = resealed.after
    assert intake.resealed(view, ring) == []
    assert intake.opened(view, ring) == f"KEK {ring.id.hex()} opens all 2 keys"
    assert "after" not in repr(Resealed(ADDRESS, b"before", b"after"))


def test_a_retired_key_need_not_open(path: Path) -> None:
    view = View()
    view.put(KeyRecord(1, ADDRESS, KeyState.RETIRED, 0, 0, 0), 1)
    intake.load_keks(path, view)
    view.put(KeyRecord(1, ADDRESS, KeyState.FREE, 0, 0, 0), 1)
    with pytest.raises(SecretFileError):
        intake.load_keks(path, view)
