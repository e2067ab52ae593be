"""What a server has when it is ready is no matter of the garbage collector, and is freed all the same."""

from __future__ import annotations

import gc
import weakref

from server.memory import set_aside


class Thing:
    pass


def test_what_is_there_is_out_of_the_collectors_sight() -> None:
    old = Thing()
    seen = weakref.ref(old)
    try:
        set_aside()
        assert gc.get_freeze_count() > 1000
        new = Thing()
        tracked = {id(one) for one in gc.get_objects() if isinstance(one, Thing)}
        assert tracked == {id(new)}
        del old
        assert seen() is None
    finally:
        gc.unfreeze()
