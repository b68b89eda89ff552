"""Frozen dataclasses that JAX maps over: some fields are numbers to compute with, others are part of the program."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

Class = TypeVar("Class", bound=type)


def static(default: Any = dataclasses.MISSING, *, kw_only: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that is part of the program, not a number to compute with: a name, a flag, a count."""
    return dataclasses.field(default=default, metadata={"static": True}, kw_only=kw_only)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: Class) -> Class:
    """A frozen dataclass that JAX sees as a pytree of its fields, :func:`static` ones apart.

    Unlike ``jax.tree_util.register_dataclass`` it does not call ``__init__`` when JAX rebuilds an object, so
    ``__post_init__`` may check values: it never sees a traced one.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    data = [field.name for field in fields if not field.metadata.get("static")]
    meta = [field.name for field in fields if field.metadata.get("static")]

    def flatten(instance):
        children = [(jax.tree_util.GetAttrKey(name), getattr(instance, name)) for name in data]
        return children, tuple(getattr(instance, name) for name in meta)

    def unflatten(values, children):
        instance = object.__new__(cls)
        for name, value in (*zip(meta, values, strict=True), *zip(data, children, strict=True)):
            object.__setattr__(instance, name, value)
        return instance

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls
