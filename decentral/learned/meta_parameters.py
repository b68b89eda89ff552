"""What is learned of a learned optimizer: the weights of its network and the decay rates of its averages; and their files."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decentral.errors import InvalidInput, suggest
from decentral.problem.checks import check_int
from decentral.problem.pytrees import pytree, static

FEATURES = 39
"""What the network sees of one parameter: 28 features of its gradient's history, and 11 of the time."""
OUTPUTS = 2
"""A direction, and the logarithm of a magnitude."""
HAND_MADE = "hand_made"
_FOLDER = Path(__file__).parent / "data"
SHIPPED = (HAND_MADE, *sorted(path.stem for path in _FOLDER.glob("*.npz")))
"""Meta-parameters that come with the package, by name."""
_ADVICE = "Meta-train anew, or see decentral.learned.meta_parameters.save_meta_parameters for the format."


@pytree
class MetaParameters:
    """The meta-parameters of :func:`decentral.learned.optimizer.learned`; a pytree of arrays, float32 as they are made here.

    Args:
        layers: (weight, bias) of the three layers of the network, of shapes (39, h), (h, h), (h, 2) and (h,), (h,), (2,).
        momentum_decays: (3,), offsets of the decay rates of the averages of gradients; 0 means .9, .99, .999.
        rms_decays: (1,), of the average of squared gradients; 0 means .999.
        adafactor_decays: (3,), of the averages of squared gradients by row and column; 0 means .9, .99, .999.
        name: under which they can be loaded, or "".

    Raises:
        InvalidInput: other shapes, or a number in a NumPy array that is not finite.
    """

    layers: tuple[tuple[Any, Any], ...]
    momentum_decays: Any
    rms_decays: Any
    adafactor_decays: Any
    name: str = static("")

    def __post_init__(self) -> None:
        if len(self.layers) != 3:
            raise InvalidInput(
                "meta_parameters.layers", f"{len(self.layers)} of them", "3, each (weight, bias)"
            )
        widths = [np.shape(weight) for weight, _ in self.layers]
        hidden = widths[0][-1] if widths[0] else 0
        for name, array in _arrays(self).items():
            expected = _shapes(hidden).get(name)
            if np.shape(array) != expected:
                raise InvalidInput(
                    f"meta_parameters.{name}", np.shape(array), f"an array of shape {expected}",
                    f"The network has layers {FEATURES}-h-h-{OUTPUTS}, here h = {hidden}.",
                )  # fmt: skip
            if isinstance(array, np.ndarray) and not np.isfinite(array).all():  # not a traced one
                raise InvalidInput(
                    f"meta_parameters.{name}", "numbers that are not finite", "finite ones", _ADVICE
                )

    @property
    def hidden(self) -> int:
        """Units of each hidden layer."""
        return np.shape(self.layers[1][0])[-1]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MetaParameters):
            return NotImplemented
        same = jax.tree.structure(self) == jax.tree.structure(other)
        return same and all(map(np.array_equal, jax.tree.leaves(self), jax.tree.leaves(other)))

    __hash__ = None  # type: ignore[assignment]  # it holds arrays

    def __repr__(self) -> str:
        return f"MetaParameters({self.name!r}, hidden={self.hidden})"


def _shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    """Array -> shape, in a file and of an instance."""
    sizes = (FEATURES, hidden, hidden, OUTPUTS)
    layers = {f"w{k}": sizes[k : k + 2] for k in range(3)} | {f"b{k}": sizes[k + 1 : k + 2] for k in range(3)}
    return layers | {"momentum_decays": (3,), "rms_decays": (1,), "adafactor_decays": (3,)}


def _arrays(meta: MetaParameters) -> dict[str, Any]:
    layers = {
        f"{letter}{k}": array
        for k, layer in enumerate(meta.layers)
        for letter, array in zip("wb", layer, strict=True)
    }
    decays = ("momentum_decays", "rms_decays", "adafactor_decays")
    return layers | {name: getattr(meta, name) for name in decays}


def _from_arrays(arrays: Mapping[str, Any], name: str = "") -> MetaParameters:
    layers = tuple((arrays[f"w{k}"], arrays[f"b{k}"]) for k in range(3))
    return MetaParameters(
        layers, arrays["momentum_decays"], arrays["rms_decays"], arrays["adafactor_decays"], name
    )


def initial_meta_parameters(key: Any, hidden: int) -> MetaParameters:
    """Where meta-training starts, as the released code of µLO and of small_fc_lopt (Metz et al. 2022) has it.

    Weights are truncated normal (at two standard deviations) with standard deviation 1 / sqrt(fan_in) before truncation,
    biases and offsets of decay rates zero.

    Args:
        key: of ``jax.random``.
        hidden: units of each hidden layer; 4 in the published text, 32 in the released code.
    """
    hidden = check_int("hidden", hidden)
    arrays: dict[str, Any] = {name: jnp.zeros(shape, jnp.float32) for name, shape in _shapes(hidden).items()}
    for k, one in enumerate(jax.random.split(key, 3)):
        shape = arrays[f"w{k}"].shape
        arrays[f"w{k}"] = jax.random.truncated_normal(one, -2, 2, shape, jnp.float32) / np.float32(
            np.sqrt(shape[0])
        )
    return _from_arrays(arrays)


def hand_made() -> MetaParameters:
    """Nothing learned: four hidden units pass one feature on, so that the direction is momentum (decay .9) / sqrt(its RMS).

    The feature is m / sqrt(v + 1e-6), with m and v the averages of the gradient (.9) and its square (.999) without bias
    correction, divided by its root mean square over the tensor: x = ReLU(x) - ReLU(-x).
    """
    arrays = {name: np.zeros(shape, np.float32) for name, shape in _shapes(4).items()}
    arrays["w0"][6, :2] = 1, -1
    arrays["w1"][(0, 1), (0, 1)] = 1
    arrays["w2"][:2, 0] = 1, -1
    return _from_arrays(arrays, HAND_MADE)


def load_meta_parameters(name_or_path: str | os.PathLike) -> MetaParameters:
    """Meta-parameters that come with the package (``SHIPPED``), or those of a file.

    Raises:
        InvalidInput: neither; not such a file; other shapes; numbers that are not finite.
    """
    if name_or_path == HAND_MADE:
        return hand_made()
    arrays, _ = _read(name_or_path)
    return _from_arrays({name: arrays[name] for name in _shapes(1)}, os.fspath(name_or_path))


def provenance(name_or_path: str | os.PathLike) -> dict[str, Any]:
    """Where meta-parameters come from: what was given to :func:`save_meta_parameters`.

    Raises:
        InvalidInput: as :func:`load_meta_parameters`.
    """
    if name_or_path == HAND_MADE:
        return {"source": "written down, not learned; see decentral.learned.meta_parameters.hand_made"}
    return _read(name_or_path)[1]


def save_meta_parameters(
    path: str | os.PathLike, meta: MetaParameters, provenance: Mapping[str, Any]
) -> None:
    """Write them to a file that NumPy reads without pickle.

    Args:
        path: of the file; ends in ``.npz``.
        meta: w0, b0 ... w2, b2 and the three arrays of decays are written as float32.
        provenance: where they come from, plain data: what meta-trained them, with which seed and commit, and the cost.

    Raises:
        InvalidInput: another ending; numbers that are not finite.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InvalidInput("path", str(path), "a file name that ends in .npz")
    arrays = {name: np.asarray(array, np.float32) for name, array in _arrays(meta).items()}
    _from_arrays(arrays)  # checks them
    text = np.asarray(json.dumps(dict(provenance), sort_keys=True))
    # Whole or not at all: a resumed meta-training writes over the file of the step before.
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        np.savez(file, **(arrays | {"provenance": text}))  # type: ignore[arg-type]  # it has no argument of these names
    os.replace(part, path)


def _read(name_or_path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    said = os.fspath(name_or_path) if isinstance(name_or_path, str | os.PathLike) else name_or_path
    path = _FOLDER / f"{said}.npz" if said in SHIPPED else Path(str(said))
    if not path.is_file():
        raise InvalidInput(
            "meta_parameters", said, "a name below, or a file that save_meta_parameters wrote",
            "It is a folder; a meta-training's has them in meta_parameters.npz."
            if path.is_dir() and str(said)
            else suggest(str(said), SHIPPED),
        )  # fmt: skip
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        origin = json.loads(str(arrays.pop("provenance", "{}")))
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInput(
            "meta_parameters", str(path), "an .npz file", f"Reading it failed: {error}"
        ) from None
    missing = [name for name in _shapes(1) if name not in arrays]
    if missing:
        raise InvalidInput(
            "meta_parameters",
            str(path),
            f"a file with {', '.join(_shapes(1))}",
            f"Missing: {missing}. {_ADVICE}",
        )
    wrong = [name for name in _shapes(1) if arrays[name].dtype.kind != "f"]
    if wrong:
        raise InvalidInput(
            "meta_parameters", str(path), "arrays of floating-point numbers", f"Not so: {wrong}. {_ADVICE}"
        )
    return {name: np.asarray(arrays[name], np.float32) for name in _shapes(1)}, origin
