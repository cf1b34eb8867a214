"""Which FlashInfer tile is used: nearest entries, refusals, the file on disk, and what the table's numbers mean."""

from __future__ import annotations

import pytest

from hunyuan.accel.build import tactics as tiles
from hunyuan.accel.experts import tactics as tactics_module
from hunyuan.accel.experts.tactics import Key, Tactics, Untuned, candidates, nearest
from hunyuan.plan.memory import MOST_EXPERT_TOKENS

KEY = Key("1.2", "sm_90x132", "humming", (64, 8, 4096, 3072))


def test_nearest_is_by_ratio_and_has_a_limit():
    tuned = [1, 16, 1024, 4120, 8240]
    expected = {1: 1, 2: 1, 4: 16, 5: 16, 128: 1024, 5700: 4120, 5900: 8240, 20_000: 8240, 70_000: None}
    assert {tokens: nearest(tokens, tuned) for tokens in expected} == expected
    assert nearest(4, [16, 1]) == nearest(4, [1, 16])
    assert nearest(127, [16]) == 16
    assert nearest(129, [16]) is None
    assert nearest(1, []) is None


def test_untuned_is_an_error_that_says_what_is_known():
    table = Tactics()
    with pytest.raises(Untuned, match=r"no tuned MoE tactic for 100 tokens of 1.2/sm_90x132/humming/.*tuned: none"):
        table.find(KEY, 100)
    table.remember(KEY, 4120, (3, 130))
    assert table.find(KEY, 8000) == (3, 130)
    with pytest.raises(Untuned, match="tuned: 4120"):
        table.find(KEY, 4)


def test_entries_are_remembered_on_disk(tmp_path):
    folder = tmp_path / "cache"
    Tactics(folder).remember(KEY, 16, (4, 140))
    Tactics(folder).remember(KEY, 1024, (5, 141))
    again = Tactics(folder)
    assert (again.find(KEY, 16), again.find(KEY, 1024)) == ((4, 140), (5, 141))
    assert [p.name for p in folder.iterdir()] == [tactics_module.FILE_NAME]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 3}', '{"a": {"1": [1]}}', '{"a": {"x": [1, 2]}}'])
def test_broken_file_is_ignored_and_replaced(tmp_path, caplog, text):
    (tmp_path / tactics_module.FILE_NAME).write_text(text)
    table = Tactics(tmp_path)
    assert "ignoring the MoE tactics" in caplog.text
    table.remember(KEY, 16, (4, 140))
    assert Tactics(tmp_path).find(KEY, 16) == (4, 140)


def test_table_and_candidates_name_deterministic_tiles_for_the_right_product():
    assert tiles.FLASHINFER_VERSION == tactics_module._VERSION
    for mode, numbers in tactics_module.all_profile_ids().items():
        known = tiles.tactics(tiles.MODES[mode])
        first, second = candidates(mode)
        for number in {*numbers, *first, *second}:
            tile = known[number]
            assert tile is not None
            assert not tile.finalize
        for ours, theirs in zip(first, second, strict=True):
            assert known[ours] == known[theirs]
        every, _ = candidates(mode, everything=True)
        assert set(first) <= set(every)
        assert second[0] >= len(known) // 3


def test_warm_up_has_nothing_to_measure_for_the_real_sizes():
    buckets = tactics_module.usual_buckets(MOST_EXPERT_TOKENS)
    assert buckets == tactics_module.BUCKETS
    for key, by_tokens in tactics_module._TABLE.items():
        assert set(buckets) <= set(by_tokens), key.mode


def test_table_has_pairs_of_first_and_second_product():
    for key, by_tokens in tactics_module._TABLE.items():
        border = tactics_module._FIRST[key.mode]
        assert all(first < border <= second for first, second in by_tokens.values())


def test_a_folder_that_cannot_be_written_is_said_and_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    table = Tactics(tmp_path / "file")
    table.remember(KEY, 16, (4, 140))
    assert table.find(KEY, 16) == (4, 140)
    assert "not kept for the next start" in caplog.text
