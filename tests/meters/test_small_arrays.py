"""The list of small arrays that meters keep of a long video."""

import numpy as np
import pytest

from stages.meters.small_arrays import SmallArrays


def test_arrays_come_back_equal_in_their_order_whatever_their_shapes():
    rng = np.random.default_rng(0)
    given = [rng.integers(0, 60000, shape, np.uint16) for shape in ((2, 9), (2, 9), (3,), (0,))]
    kept = SmallArrays()
    for values in given:
        kept.append(values)
        kept[0]  # a copy, so that the block can still grow
    assert len(kept) == len(given)
    for one, two in zip(kept, given, strict=True):
        assert one.dtype == two.dtype
        assert np.array_equal(one, two)
    assert [values.shape for values in kept.between(1, 9)] == [(2, 9), (3,), (0,)]
    with pytest.raises(IndexError):
        kept[4]
    assert not len(SmallArrays())
    assert SmallArrays().between(0, 2) == []
