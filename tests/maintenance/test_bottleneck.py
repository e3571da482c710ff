"""What `modelfs bench` says of its figures: what limits, and a setting only where the figures show that it helps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelfs.maintenance.bottleneck import Conditions, limits_of, limits_of_mount
from modelfs.maintenance.speed import Stage

GB = 10**9
AT = Conditions(connections=8, cores=4, network=True, stored_ratio=0.5, engine="auto", verify="mount",
                mounted_by="native", passthrough=True)


def figures(**s_per_gb: float) -> dict[str, Stage]:
    """Every stage takes 0.1 s a GB, but those given."""
    names = ("store_one", "store", "decode", "check", "disk_write", "disk_read", "mount_cold", "mount_warm")
    return {name: Stage(name, "", GB, s_per_gb.get(name, 0.1)) for name in names}


def cold(at: Conditions = AT, **s_per_gb: float) -> str:
    return limits_of(figures(**s_per_gb), at).cold or ""


def warm(at: Conditions = AT, **s_per_gb: float) -> str:
    return limits_of(figures(**s_per_gb), at).warm or ""


@pytest.mark.parametrize(("one", "said"), [
    (8 * 4.0, "8 connections bring 8.0 times what one does, so the link is not full: more fetch.connections than 8"),
    (2 * 4.0, "8 connections bring 2.0 times what one does: the link or the server is full, and more "
              "fetch.connections would not help."), (5 * 4.0, "8 connections bring 5.0 times what one does.")])
def test_more_connections_are_advised_only_where_each_brings_what_one_does(one: float, said: str) -> None:
    text = cold(store=4.0, store_one=one, mount_cold=2.5)
    assert "the store alone takes 2.00 s" in text and "and that limits it" in text  # half of the bytes travel
    assert said in text


def test_of_a_store_without_a_network_nothing_is_said_of_connections() -> None:
    assert "connections" not in cold(replace(AT, network=False), store=4.0, store_one=32.0, mount_cold=2.5)


def test_decoding_is_shared_by_the_cores_and_no_setting_makes_it_faster() -> None:
    text = cold(decode=6.0, check=2.0, mount_cold=2.5)
    assert "decoding and checking on 4 cores alone takes 2.00 s" in text and "No setting" in text


def test_a_disk_limits_a_cold_read_only_where_the_read_took_as_long_as_its_writing() -> None:
    assert "cache.directory on a faster disk" in cold(disk_write=2.0, mount_cold=2.5)
    assert "disk" not in cold(disk_write=9.0, mount_cold=2.5)


def test_where_no_stage_takes_half_of_a_cold_read_none_is_blamed() -> None:
    text = cold(store=1.0, mount_cold=2.5)
    assert "less than half" in text and "limits it" not in text and "would help" not in text
    assert '"auto" takes the native engine' in cold(replace(AT, engine="fusepy", mounted_by="fusepy"),
                                                           store=1.0, mount_cold=2.5)


def test_without_a_mount_a_cold_read_has_a_lower_bound_and_a_warm_one_nothing() -> None:
    found = limits_of(figures(store=4.0), replace(AT, mounted_by=None))
    assert found.cold and found.cold.startswith("A cold read takes at least 2.00 s a GB") and found.warm is None


def test_a_warm_read_is_limited_by_the_disk_the_kernel_or_a_cache_that_does_not_keep() -> None:
    assert "the cache disk alone takes 1.00 s, and that limits it" in warm(disk_read=1.0, mount_warm=1.1)
    assert "that limits it" not in warm(disk_read=2.0, mount_warm=1.0)  # it cannot have been this slow then
    assert "the kernel the other 1.00 s on the way to it (passthrough)" in warm(disk_read=1.0, mount_warm=2.0)
    through = replace(AT, passthrough=False, verify="always")
    assert "requests to modelfs, limit it. cache.verify" in warm(through, disk_read=1.0, mount_warm=2.0)
    assert "20% of its requests waited for the store again" in warm(replace(AT, missed=0.2), mount_warm=2.0)


def test_of_a_mount_that_was_there_its_counters_tell_whether_a_read_was_cold() -> None:
    one, two = Stage("mount_first", "", GB, 3.0), Stage("mount_second", "", GB, 1.0)
    found = limits_of_mount(one, two, GB // 2, 0.9, AT)
    assert found.cold and "90% of its requests waited for the store" in found.cold
    assert found.warm and "1.00 s a GB, by passthrough" in found.warm
    assert limits_of_mount(one, two, 0, 0.0, AT).cold is None
    again = limits_of_mount(one, two, GB, 0.9, replace(AT, passthrough=False, missed=0.5)).warm
    assert again and "50% of its requests" in again and "cache.size" in again
