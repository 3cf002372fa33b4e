import hashlib

from contracts.seeds import fold


def test_a_folded_seed_is_the_head_of_a_sha256_without_its_sign_bit():
    digest = hashlib.sha256(b"7/imagine/1").digest()
    assert fold(7, "imagine", 1) == int.from_bytes(digest[:4], "big") // 2


def test_neighbours_do_not_collide():
    seeds = {fold(a, "x", b) for a in range(60) for b in range(60)}
    assert len(seeds) == 3600
