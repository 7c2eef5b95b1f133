"""Compiled programs are kept where only the user can write."""

import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from l2l_jax.errors import UserError
from l2l_jax.utils.runtime import keep_compiled_programs

OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def options_as_before(monkeypatch, tmp_path):
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_are_found_again(tmp_path):
    compilation_cache.reset_cache()
    keep_compiled_programs()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    assert jax.jit(lambda x: jnp.sin(x) + 12345)(0.0) == 12345
    folder = tmp_path / "l2l_jax" / "compiled"
    assert any(folder.iterdir())
    assert folder.stat().st_mode & 0o077 == 0


def test_a_file_or_a_folder_that_others_may_write_to_is_refused(tmp_path):
    (tmp_path / "l2l_jax").write_text("")
    with pytest.raises(UserError, match="--compile_cache: .* cannot be made"):
        keep_compiled_programs()
    (tmp_path / "l2l_jax").unlink()
    folder = tmp_path / "l2l_jax" / "compiled"
    folder.mkdir(parents=True)
    os.chmod(folder, 0o777)
    with pytest.raises(UserError, match="--compile_cache: .*compiled belongs to others or can be written"):
        keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir != str(folder)
