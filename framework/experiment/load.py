"""Loads an experiment: one file of plain functions, found by their names.

    experiment = load('experiments/mnist_mlp.py:small')      # check() reads the file first, without executing it
    config = experiment.get_config()
    model = experiment.functions['make_model'](config)

Reading the file (`ast`) finds a wrong name or wrong arguments of a function before the file is executed.
"""

import ast
import dataclasses
import inspect
import os
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from framework.config import base_config, flatten, former
from framework.errors import UserError, closest, near
from framework.experiment.own_modules import OwnModules
from framework.experiment.returns import FUNCTIONS, OPTIONAL, REQUIRED
from framework.experiment.user_code import staying

_MOST_BYTES = 5_000_000  # of an experiment file
CODE = "code"  # folder with the copies of modules, inside a run folder


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A loaded experiment file.

    Attributes:
      path: the file.
      preset: the text after the colon, passed to `get_config`; '' if there is none.
      functions: the functions of `returns.FUNCTIONS` that the file defines.
      modules: the modules beside the file that it imports.
    """

    path: Path
    preset: str
    functions: Mapping[str, Callable[..., Any]]
    modules: OwnModules = dataclasses.field(default_factory=lambda: OwnModules(Path()))

    @property
    def name(self) -> str:
        """Returns the experiment as --config names it: 'path/to/file.py' or 'path/to/file.py:preset'."""
        return f"{self.path}:{self.preset}" if self.preset else str(self.path)

    def sources(self) -> dict[str, tuple[Path, bytes]]:
        """Returns {name of the copy in a run folder: (file, bytes)} for the file and the modules it imported."""
        modules = {f"{CODE}/{name}": source for name, source in self.modules.files().items()}
        return {self.path.name: (self.path, self.modules.source(self.path)), **modules}

    @property
    def own(self) -> tuple[str, ...]:
        """Returns what functions of the experiment decide in place of the framework: 'optimizer', 'evaluators'."""
        return tuple(part for part in ("optimizer", "evaluators") if f"make_{part}" in self.functions)

    def get_config(self) -> ConfigDict:
        """Returns the config of the experiment for its preset.

        Raises:
          UserError: the function returned another type, or set a key or value that a config refuses.
        """
        try:
            config = self.functions["get_config"](self.preset)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if Path(frame.filename).resolve() == self.path.resolve()]
            if "ml_collections" not in Path(frames[-1].filename).parts or not own:
                raise
            line = own[-1]
            raise UserError(
                f"{self.path}:{line.lineno}: {line.line}: {_refused(str(error), str(line.line))}"
            ) from error
        if type(config) is not ConfigDict:  # a frozen one cannot be overridden
            raise UserError(
                f"{self.path}: get_config returned {type(config).__name__}, not a ConfigDict."
                " Start from base_config() and return it."
            )
        return config


def _refused(message: str, line: str) -> str:
    """Returns a sentence for the message of ml_collections about an unknown key or a value of another type."""
    if match := re.search(r'Key "(\w+)" does not exist', message):
        for key, entry in former.FORMER.items():
            if entry.now != key and key.endswith(f".{match[1]}") and key in line:
                return former.fate(key)
        names = {key.rpartition(".")[2]: key for key in flatten(base_config())}
        close = closest(match[1], names)
        hint = f" Did you mean config.{names[close]}?" if close else ""
        return f"there is no such key.{hint} Own keys belong in config.data or config.model."
    if match := re.search(r"is of original type <class '(\w+)'> and cannot be casted to type <class '(\w+)'>", message):
        return f"the value is of type {match[1]}, not {match[2]}. --mode=check prints every key with a value."
    return " ".join(message.split())


def load(name: str) -> Experiment:
    """Checks and executes an experiment file.

    Args:
      name: 'path/to/file.py' or 'path/to/file.py:preset'.

    Raises:
      UserError: as in `check`, or the file makes tensors while it is executed.
    """
    path, preset = check(name)
    if path.suffix != ".py":
        raise UserError(f"--config={path} is not a Python file. Type e.g. --config=experiments/mnist_mlp.py.")
    modules = _modules_of(path)
    with staying(str(path)):
        module = modules.load(f"experiment_{path.stem}", path)
    _refuse_tensors(module, path)
    functions = {name: getattr(module, name) for name in FUNCTIONS if hasattr(module, name)}
    for function_name, function in functions.items():
        _check_callable(path, function_name, function)
    return Experiment(path, preset, functions, modules)


def _modules_of(path: Path) -> OwnModules:
    """Returns the modules beside the file; for an experiment copied into a run folder, the copies there."""
    folder = path.resolve().parent
    version = re.search(r"\.step-\d+$", path.stem)
    copies = folder / f"{CODE}{version[0] if version else ''}"
    is_copy = (folder / "config.json").is_file() and copies.is_dir()
    return OwnModules(copies if is_copy else folder, is_copy)


def check(name: str) -> tuple[Path, str]:
    """Reads an experiment file without executing it; returns (path, preset).

    Raises:
      UserError: the file does not exist or does not parse, or a function is missing, misspelt or takes other
        arguments.
    """
    file, _, preset = name.partition(":")
    path = Path(file)
    try:
        if path.exists() and not path.is_dir() and (not path.is_file() or path.stat().st_size > _MOST_BYTES):
            raise UserError(f"--config={file} is no experiment, but a device, a pipe or a file of more than 5 MB.")
        source = path.read_bytes()
    except OSError as error:
        siblings = [str(sibling) for sibling in path.parent.glob("*.py")]
        named = os.path.join("experiments", f"{path.stem}.py")
        hint = f" Did you mean '{named}'?" if os.path.exists(named) else near(file, siblings)
        raise UserError(
            f"--config={file} cannot be read: {error.strerror}.{hint} Type e.g. --config=experiments/mnist_mlp.py."
        ) from error
    try:
        tree = ast.parse(source, str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(
            f"--config={file} is not valid Python: {' '.join(str(error).split()) or 'it is nested too deeply'}."
        ) from error
    defined = _defined(tree)
    for wanted in REQUIRED:
        if wanted not in defined:
            hint = near(wanted, defined - FUNCTIONS.keys())
            if any(isinstance(node, ast.AsyncFunctionDef | ast.ClassDef) and node.name == wanted for node in tree.body):
                hint = f" Write it as a plain `def {wanted}`."
            raise UserError(
                f"{file} does not define {wanted}({', '.join(FUNCTIONS[wanted].arguments)}).{hint}"
                f" An experiment defines {', '.join(REQUIRED)} and may define {', '.join(OPTIONAL)}."
            )
    for unknown in sorted(defined - FUNCTIONS.keys()):
        if unknown.startswith(("make_", "get_")) or closest(unknown, FUNCTIONS, cutoff=0.9):
            raise UserError(
                f"{file} defines {unknown}, which the framework never calls.{near(unknown, FUNCTIONS)}"
                f" Known: {', '.join(FUNCTIONS)}. Start a helper of your own with an underscore."
            )
    for node in tree.body:
        # A decorator may change the arguments: `_check_callable` sees them once the file is executed.
        if isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS and not node.decorator_list:
            _check_arguments(path, node)
    return path, preset


def ignores(path: Path, function: str, key: str) -> bool:
    """Returns whether a function of the file never reads `cfg.SECTION.NAME`, for a key 'SECTION.NAME'.

    A function that passes its whole config or the whole section on is assumed to read the key.
    """
    tree = ast.parse(path.read_bytes())
    section, _, name = key.partition(".")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function and node.args.args:
            config = node.args.args[0].arg
            nodes = list(ast.walk(node))
            inner = {id(inside.value): inside.attr for inside in nodes if isinstance(inside, ast.Attribute)}
            uses = [inside for inside in nodes if isinstance(inside, ast.Name) and inside.id == config]
            if not all(id(use) in inner for use in uses):
                return False
            sections = [
                inside
                for inside in nodes
                if isinstance(inside, ast.Attribute)
                and isinstance(inside.value, ast.Name)
                and (inside.value.id, inside.attr) == (config, section)
            ]
            return all(inner.get(id(inside), name) != name for inside in sections)
    return False


def readers(path: Path, section: str, key: str) -> list[str]:
    """Returns the names of the functions and classes of a file that read `….SECTION.KEY`."""
    tree = ast.parse(path.read_bytes())
    names = []
    for node in tree.body:
        reads = (inside.value for inside in ast.walk(node) if isinstance(inside, ast.Attribute) and inside.attr == key)
        if any(isinstance(owner, ast.Attribute) and owner.attr == section for owner in reads):
            names.append(getattr(node, "name", f"line {node.lineno}"))
    return names


def _defined(tree: ast.Module) -> set[str]:
    """Returns the functions a module defines, and imported or assigned names that the framework would call."""
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names} & FUNCTIONS.keys()
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)} & FUNCTIONS.keys()
    return names


def _check_arguments(path: Path, node: ast.FunctionDef) -> None:
    wanted, arguments = FUNCTIONS[node.name].arguments, node.args
    most = len(arguments.posonlyargs) + len(arguments.args)
    least = most - len(arguments.defaults)
    keywords = [
        argument.arg
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if not default
    ]
    if (least <= len(wanted) and (most >= len(wanted) or arguments.vararg)) and not keywords:
        return
    shown = ", ".join(argument.arg for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])
    raise UserError(_wrong_arguments(path, node.name, shown, node.lineno))


def _check_callable(path: Path, name: str, function: Any) -> None:
    """Checks the arguments of a function that is decorated, imported or assigned, which only execution shows."""
    if not callable(function):
        raise UserError(f"{path}: {name} is of type {type(function).__name__}, not a function.")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have no signature
        return
    try:
        signature.bind(*FUNCTIONS[name].arguments)
    except TypeError as error:
        raise UserError(_wrong_arguments(path, name, ", ".join(signature.parameters), None)) from error


def _wrong_arguments(path: Path, name: str, shown: str, line: int | None) -> str:
    where = f"{path}:{line}" if line else f"{path}"
    called = f"{name}({', '.join(FUNCTIONS[name].arguments)})"
    return f"{where}: {name}({shown}) is called as {called}. Give it those arguments."


def _refuse_tensors(module: ModuleType, path: Path) -> None:
    import tensorflow as tf  # here, because the checks before it need no TensorFlow

    for name, value in vars(module).items():
        if isinstance(value, tf.Tensor | tf.Variable):
            raise UserError(
                f"{path}: '{name}' is a tensor made at module level, before devices and seed are set."
                " Make it inside one of the functions."
            )
