"""Makes the config of each replica of a run, from its seed and a sweep file.

A sweep file is TOML. It has a list for each field that differs between the replicas, with one value for each replica:

    learning_rate = [1e-4, 3e-4, 1e-3, 3e-3]
"""

import pathlib
import tomllib

from pneumojax.config import SWEPT, Config, replace_fields
from pneumojax.errors import UserError


def plan_replicas(config: Config) -> list[Config]:
    """Returns the config of each replica.

    Replica r has the seed `seed + r` and element r of each list in the sweep file. A single run with this config trains
    the same network as the replica, up to rounding.

    Args:
      config: the config of all replicas, which names the sweep file.

    Raises:
      UserError: the file cannot be read, names a field that cannot be swept, or has a list of the wrong length or type.
    """
    replicas = config.train.replicas
    lists = _read_sweep(config.train.sweep, replicas) if config.train.sweep else {}
    plans = []
    for replica in range(replicas):
        values = {"seed": config.train.seed + replica} | {name: column[replica] for name, column in lists.items()}
        try:
            plans.append(replace_fields(config, {"replicas": 1, "sweep": None} | values))
        except UserError as error:
            where = f"{config.train.sweep}, replica {replica}" if lists else f"replica {replica}"
            raise UserError(f"{where}: {error}") from error
    return plans


def _read_sweep(path: str, replicas: int) -> dict[str, list]:
    try:
        lists = tomllib.loads(pathlib.Path(path).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"sweep: {path} cannot be read as TOML ({error}).") from error
    kinds = {"seed": int} | dict.fromkeys(SWEPT, float)
    for name, column in lists.items():
        if name not in kinds:
            raise UserError(f"sweep: {path} lists {name}, which cannot be swept. These fields can: {', '.join(kinds)}.")
        if not isinstance(column, list) or len(column) != replicas:
            given = f"{len(column)} values" if isinstance(column, list) else "no list"
            raise UserError(f"sweep: {path} has {given} for {name}; replicas={replicas} needs a list of {replicas}.")
        if bad := [value for value in column if type(value) not in (int, kinds[name])]:
            kind = "a whole number" if kinds[name] is int else "a number"
            raise UserError(f"sweep: {path} has {bad[0]!r} for {name}, which must be {kind}.")
    return {name: [kinds[name](value) for value in column] for name, column in lists.items()}
