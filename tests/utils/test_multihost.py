"""Single-process communication, and error messages of several; real processes: test_several_processes."""

import jax
import numpy as np
import pytest

from l2l_jax.errors import UserError
from l2l_jax.experiment.phase import open_phase
from l2l_jax.utils import multihost as collectives
from l2l_jax.utils.multihost import barrier, exchange, from_primary, is_primary, to_host


def test_single_process_sends_nothing_and_keeps_its_exceptions():
    assert is_primary() and exchange("text") == ["text"]
    marker = object()
    assert from_primary(lambda: marker) is marker  # without a JSON round trip
    error = OSError(28, "No space left on device")
    with pytest.raises(OSError) as caught, barrier():
        raise error
    assert caught.value is error and not hasattr(error, "known_to_all")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["bad", "bad"], "bad"),
        (["", "bad"], "Process 1 of 2: bad"),
        (["one", "", "two"], "Process 0 of 3: one Process 2 of 3: two"),
    ],
)
def test_equal_errors_are_reported_once(texts, expected, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: len(texts))
    monkeypatch.setattr(collectives, "exchange", lambda own: texts)
    with pytest.raises(UserError) as told, barrier():
        pass
    assert str(told.value) == expected and told.value.known_to_all


def test_arrays_are_gathered_to_the_host():
    values = np.arange(16.0)
    devices = jax.sharding.Mesh(np.array(jax.devices()), ("device",))
    split = jax.device_put(values, jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec("device")))
    result = to_host({"split": split, "plain": values})
    np.testing.assert_array_equal(result["split"], values)
    assert isinstance(result["split"], np.ndarray) and result["plain"] is values


def test_batch_size_not_divisible_by_processes_is_rejected(monkeypatch):
    from tests.test_main_several import config

    settings = config()
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(UserError, match="batch_size is 8, which is not a multiple of the 3 processes"):
        open_phase(settings, "unlearn").train("unlearn", {}, {}, None, [jax.devices()[0]])
