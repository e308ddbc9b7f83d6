import threading

import pytest

from spcl.data.ahead import ahead


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order(threads):
    assert list(ahead(lambda x: x * x, range(20), threads)) == [x * x for x in range(20)]
    assert list(ahead(lambda x: x, [], threads)) == []


def test_the_next_is_made_while_one_is_used_and_not_much_more():
    taken, second = [], threading.Event()

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    def work(item):
        if item == 1:
            second.set()
        return item

    found = ahead(work, items(), 2)
    assert next(found) == 0
    assert second.wait(10)  # without anybody asking
    assert len(taken) == 4  # the one given out and threads + 1
    assert next(found) == 1 and len(taken) == 5
    found.close()


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_comes_in_its_turn_and_no_thread_stays(threads):
    def work(item):
        if item == 3:
            raise ValueError("the third")
        return item

    before = threading.active_count()
    found = ahead(work, range(100), threads)
    assert [next(found), next(found), next(found)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(found)
    assert threading.active_count() == before
