"""``--typecheck``: arguments are checked against their annotations, array shapes included."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from threestudio.utils.errors import CommandLineError

# Configs hold OmegaConf nodes in place of the lists and dicts that are annotated, and are checked when
# parsed; so the plumbing around them is left out here.
_SKIPPED = ("threestudio.utils", "threestudio.run", "threestudio.extensions")


def check_shapes(packages: tuple[str, ...] = ("threestudio",)) -> int:
    """Make annotated functions of the loaded modules check what they are called with.

    Args:
        packages: which modules: these, and those of every registered class.

    Returns:
        How many functions check now.

    Raises:
        CommandLineError: the checker, beartype, is not installed.
    """
    try:
        from beartype import BeartypeConf, BeartypeStrategy, beartype
    except ImportError as error:
        raise CommandLineError("--typecheck needs beartype: pip install beartype.") from error
    from jaxtyping import jaxtyped

    import threestudio

    packages += tuple({cls.__module__.split(".")[0] for cls in threestudio.__modules__.values()})
    checker = beartype(conf=BeartypeConf(strategy=BeartypeStrategy.On, is_pep484_tower=True))
    count = 0
    for owner, name, function in list(_functions(packages)):
        try:
            setattr(owner, name, jaxtyped(function, typechecker=checker))
            count += 1
        except Exception as error:  # an annotation that cannot be resolved at run time checks nothing
            threestudio.debug(f"--typecheck leaves out {function.__qualname__}: {error}")
    threestudio.info(f"Checking the arguments of {count} functions.")
    return count


def _functions(packages: tuple[str, ...]) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, function) of the annotated functions and methods of the modules of ``packages``."""
    for module_name, module in list(sys.modules.items()):
        wanted = module_name.split(".")[0] in packages and not module_name.startswith(_SKIPPED)
        if not wanted:
            continue
        for name, value in list(vars(module).items()):
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value) and value.__annotations__:
                yield module, name, value
            elif inspect.isclass(value):
                for method_name, method in list(vars(value).items()):
                    if (
                        inspect.isfunction(method)
                        and method.__annotations__
                        and not method_name.startswith("__")
                    ):
                        yield value, method_name, method
