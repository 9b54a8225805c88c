"""Short form of `torture.durability`, and that its judgment can fail."""

import pytest

from torture.durability import Order, trials

SAVE = """
1 mkdir("/r/x", 0777) = 0
1 fsync(4</r>) = 0
1 mkdir("/r/x/checkpoints", 0777) = 0
1 mkdir("/r/x/checkpoints/.tmp-step-000003-1", 0777) = 0
1 openat(AT_FDCWD</>, "/r/x/checkpoints/.tmp-step-000003-1/state.json", O_WRONLY|O_CREAT) = 4<…>
1 write(4</r/x/checkpoints/.tmp-step-000003-1/state.json>, "{}", 2) = 2
1 fsync(4</r/x/checkpoints/.tmp-step-000003-1/state.json>) = 0
1 fsync(4</r/x/checkpoints/.tmp-step-000003-1>) = 0
1 fsync(4</r/x>) = 0
1 rename("/r/x/checkpoints/.tmp-step-000003-1", "/r/x/checkpoints/step-000003") = 0
1 fsync(4</r/x/checkpoints>) = 0
1 rename("/r/x/checkpoints/step-000001", "/r/x/checkpoints/.tmp-old-step-000001") = 0
""".strip().splitlines()


@pytest.mark.slow
def test_what_is_saved_is_flushed_before_it_is_named_and_before_older_things_go(tmp_path):
    found = trials(1, 1, tmp_path)
    if "skipped" in found:
        pytest.skip(found["skipped"])
    assert found["failures"] == []
    assert found["saves"] >= 3
    assert found["removed"] >= 1


def judged(lines):
    order = Order()
    for line in lines:
        order.see(line)
    order.ended()
    return order.failures


def test_a_save_in_the_right_order_is_accepted():
    assert judged(SAVE) == []


def test_a_name_that_is_gone_again_needs_no_flush():
    opened = '1 openat(AT_FDCWD</>, "/r/trial", O_RDWR|O_CREAT|O_EXCL) = 4<…>'
    assert judged([*SAVE[:1], opened, *SAVE[2:]]) != []
    assert judged([SAVE[0], opened, '1 unlink("/r/trial") = 0', *SAVE[1:]]) == []


@pytest.mark.parametrize(
    ("without", "told"),
    [
        ("fsync(4</r>)", "/r is not flushed with x new"),
        ("state.json>) = 0", "state.json is not flushed when it gets its name"),
        ("-1>) = 0", "step-000003-1 is not flushed when it gets its name"),
        ("fsync(4</r/x>)", "/r/x is not flushed with checkpoints new"),
        ("fsync(4</r/x/checkpoints>)", "goes before /r/x/checkpoints is flushed"),
    ],
)
def test_a_save_that_lacks_one_flush_is_not(without, told):
    lacking = [line for line in SAVE if without not in line]
    assert len(lacking) == len(SAVE) - 1
    assert any(told in failure for failure in judged(lacking))
