"""What tests/test_executors.py has executors do: workers import it by its name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def add(a, b):
    return a + b


def where():
    return os.getpid()


def fail(words):
    raise ValueError(words)


def talk():
    print("this is no answer")
    return "answer"


def no_json():
    return Path()


def settings():
    """What a task meets: 64 bits, threads of libraries, threads of XLA."""
    import jax.numpy as jnp

    float(jnp.ones((64, 64)).sum())
    names = [
        Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")
    ]
    return str(jnp.ones(1).dtype), os.environ.get("OMP_NUM_THREADS"), names.count("tf_XLAEigen")


def cache():
    import jax

    return jax.config.jax_compilation_cache_dir


def die_once(marker):
    """The process dies, but not when it is tried again."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def wait(started, seconds):
    Path(started).write_text(str(os.getpid()))
    time.sleep(seconds)
    return "waited"
